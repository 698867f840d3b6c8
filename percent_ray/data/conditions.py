"""What the text encoders made of recent prompts, so that a prompt is encoded once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from percent_ray.models.base import Condition


class ConditionCache:
    """The conditions of the last `entries` prompts asked for, on the device that `encode` uses.

    Prompts are encoded one by one: a condition must not depend on its neighbours in a batch.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Condition], *, entries: int = 64) -> None:
        self._encode = encode
        self._entries = entries
        self._conditions: OrderedDict[str, Condition] = OrderedDict()

    def get(self, text: str) -> Condition:
        """The condition of one prompt, every tensor [1, ...]. Shared: never write to it."""
        if text not in self._conditions:
            self._conditions[text] = self._encode([text])
            if len(self._conditions) > self._entries:
                self._conditions.popitem(last=False)
        self._conditions.move_to_end(text)
        return self._conditions[text]
