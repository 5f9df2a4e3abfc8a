"""What a model card and the demo page say that such a model can't do."""


def limits(lab: bool) -> str:
    """`lab`: whether the model comes from the offline world."""
    text = (
        "It is a small model for study, not for use. It writes fluent text that is often wrong, has had no safety "
        "training, and knows English only. The reward that it was trained on is an approximation: what that could not "
        "see, PPO had no reason to keep."
    )
    made = " Model and data are generated: it answers how-to questions of a small artificial world and nothing else."
    return text + made * lab
