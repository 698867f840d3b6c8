import torch

from percent_ray.data.conditions import ConditionCache


def test_the_least_recently_asked_for_is_encoded_again():
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return {"embeds": torch.full((len(texts), 2), float(len(texts[0])))}

    cache = ConditionCache(encode, entries=2)
    for text in ["a", "bb", "a", "ccc", "a", "bb"]:
        assert cache.get(text)["embeds"].tolist() == [[len(text)] * 2]
    assert encoded == ["a", "bb", "ccc", "bb"]
