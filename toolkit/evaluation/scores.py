"""Scores of one prediction against one gold answer, each between 0 and 1.

exact_match and f1 are those of SQuAD (Rajpurkar et al. 2016): lower case, without punctuation and the words a, an, the,
with single spaces. rouge_l is the F-measure of the longest common subsequence (Lin 2004) as `rouge_score` computes it,
without stemming, on the texts as they are.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD's normal form; "The Hague." becomes "hague"."""
    bare = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 if both have the same normal form."""
    return float(normalise(prediction) == normalise(gold))


def f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the bags of words; two empty texts agree, one empty text does not."""
    said, right = normalise(prediction).split(), normalise(gold).split()
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def rouge_l(prediction: str, gold: str) -> float:
    """ROUGE-L F-measure."""
    return float(_rouge().score(gold, prediction)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "f1": f1, "rouge_l": rouge_l}
