"""Attempts to get forgotten facts back out of a file; each returns a :class:`~..evidence.Attack`."""

KINDS = {
    "few-shot": "kept facts with their answers stand before the question",
    "prefilled": "an agreeing word stands before the answer, or before the question",
    "misspelt": "the subject is misspelt",
    "paraphrased": "the question stands in another sentence",
    "chat": "the question is asked in a chat template, the file's and the original's",
    "sampling": "many answers drawn at temperature 1",
    "requantize": "the file is dequantized and quantized to another type",
    "last-layer": "the answer is read from the hidden state by the original's output layer",
    "relearning": "the file is dequantized and trained on a few of the facts",
    "control": "no attack: the original with the file's changes at random places, to compare with",
}
