"""What a model card and the demo page say that such a model can't do."""


def limits(lab: bool) -> str:
    """`lab`: whether the model comes from the offline world."""
    text = (
        "It is a model for study, not for use. It writes fluent text that is often wrong, and has had no safety "
        "training. The reward that it was trained on is an approximation: what that could not see, PPO had no reason "
        "to keep."
    )
    made = " Model and data are generated: it answers English how-to questions of a small artificial world, no others."
    return text + made * lab
