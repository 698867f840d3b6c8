from percent_ray.evaluation.results import FILE, Results, dump
from percent_ray.evaluation.store import Store


def write(results: Results, store: Store, command: str) -> list[str]:
    (store.folder / FILE).write_text(dump(results))
    return [f"{r.label}: {r.means['vendi/clip']}" for r in results.rows]
