"""What raters read. Part of the study's hash: other words are another study."""

ANSWERS = ("left", "right", "not_sure")
CAPTION_SHOWN = frozenset({"caption_similarity", "diversity"})

QUESTIONS = {
    "photorealism": "Which image is more photorealistic?",
    "caption_similarity": "Which image better matches the caption?",
    "diversity": "Which grid of images is more diverse?",
}

# Raise the version whenever the text changes: each rater's row keeps the version that the rater agreed to.
CONSENT_VERSION = "1"
CONSENT = (
    "You will see pairs of computer-generated images and say which one you prefer, or that you are not sure. "
    "We store your answers, the time each one took, and a random code that stands for you; no name and no address. "
    "Taking part is voluntary and you may stop at any time. Answers already given are kept and may be published with the study."
)
INSTRUCTIONS = (
    "Look at both sides before you answer. There is no right answer: we want your own impression.",
    "Left and right are shuffled for each question.",
    "If you cannot decide, say that you are not sure.",
    "Keep this page's address if you want to go on later: it leads back to where you stopped.",
)


def wording() -> dict[str, object]:
    """Everything a rater reads, as it enters the study."""
    return {
        "questions": QUESTIONS,
        "consent_version": CONSENT_VERSION,
        "consent": CONSENT,
        "instructions": list(INSTRUCTIONS),
    }
