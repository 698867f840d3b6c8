"""What a cluster keeps of the published weights, and where they lie."""

import asyncio
from typing import Any

import psutil
import pytest
import ray

from percent_ray.data import arrow
from percent_ray.data.prompts import PromptStream, read_prompts
from percent_ray.recipe.paths import locate_prompts
from percent_ray.runtime.cluster import Cluster
from percent_ray.runtime.mailbox import Mailbox, Order
from percent_ray.runtime.rank import _carry_out
from percent_ray.types import Prompt
from tests.end_to_end import world as worlds
from tests.learn.fake import fake_recipe, make_learner

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Watched(Cluster):
    """Draws a group of every step again before it is learned from, as is done where its payload
    was lost, and notes which versions are kept after each."""

    async def update(self, batch):
        row = batch.rows[-1]
        again = await self.sample(row.group_id, self.stream.prompt(row.group_id), row.version)
        assert ray.get(again.payload) == ray.get(row.payload)
        update = await super().update(batch)
        self.kept.append(sorted(self._weights))
        return update


@pytest.mark.study
@pytest.mark.parametrize("staleness", [0, 1])
def test_weights_are_kept_until_their_groups_are_learned_from(
    world, tmp_path, ray_cluster, staleness
):
    """And no longer. Those of the last version are gone with rank 0, which is one clear error."""
    base = worlds.recipe(world, tmp_path, max_staleness=staleness)
    recipe = base.model_copy(
        update={"run": base.run.model_copy(update={"steps": 4, "checkpoint_every": 100})}
    )
    prompts = PromptStream(read_prompts(locate_prompts(recipe.data.prompts)), recipe.run.seed)

    async def scene() -> list[list[int]]:
        cluster = await Watched.start(
            recipe, first=worlds.first(recipe), run_folder=tmp_path, resume=None
        )
        cluster.kept, cluster.stream = [], prompts
        try:
            await worlds.train(recipe, cluster)
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::RayTrain"):
                    process.kill()
            with pytest.raises(ConnectionError, match="version 4 are gone with the learner"):
                await until_lost(cluster, prompts.prompt(99))
            return cluster.kept
        finally:
            await cluster.close()

    expected = [list(range(max(0, n - staleness), n + 1)) for n in range(1, 5)]
    assert asyncio.run(asyncio.wait_for(scene(), 240)) == expected


async def until_lost(cluster: Cluster, prompt: Prompt) -> None:
    """Draws until the object store has noticed."""
    while True:
        await cluster.sample(99, prompt, 4)


def test_published_weights_are_written_once(tmp_path, ray_cluster):
    """What the driver has is a reference to the object that rank 0 has put."""

    @ray.remote(num_cpus=0)
    def rank(mailbox: Any) -> str:
        learner, _ = make_learner(fake_recipe(tmp_path))
        answer = _carry_out(learner, Order("publish"))
        ray.get(mailbox.answer.remote(0, 0, answer))
        return answer[2].hex()

    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote(1)
    given = mailbox.order.remote(0, Order("publish"))
    written = ray.get(rank.remote(mailbox))
    update, checksum, weights = ray.get(given)
    assert (update, weights.hex()) == (None, written)
    assert arrow.checksum(arrow.unpack(ray.get(weights))) == checksum
