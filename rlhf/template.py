"""The one prompt template of all three stages: fine-tuning, reward model and PPO read and write the same text."""

TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"


def format_prompt(prompt: str) -> str:
    """The text that a model continues. It ends in a newline, never in a space: a space would merge with the first
    word of the answer, and that word's label would be lost."""
    return TEMPLATE.format(prompt=prompt.strip())


def format_response(response: str) -> str:
    """The answer as it follows the template: without white space around it. EOS is appended as a token, not here."""
    return response.strip()
