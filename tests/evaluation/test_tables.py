from types import SimpleNamespace

from percent_ray.evaluation.statistics import Estimate
from percent_ray.evaluation.tables import Measured, failure_tables, task_tables


def test_failures_have_a_line_for_each_row_and_task():
    shares = {"geneval/colors": 0.7, "geneval/position": 0.3, "quality/geneval": 0.5}
    shares |= {"failed/geneval/colors/missing": 0.1, "failed/geneval/colors/color": 0.2}
    shares |= {"failed/geneval/position/missing": 0.4, "failed/geneval/position/color": 0.3}
    row = Measured("base", "", {n: Estimate(v, None, None, 1) for n, v in shares.items()}, {})
    evaluation = SimpleNamespace(judges=["geneval", "clip"])
    assert task_tables(evaluation, [row])["geneval"].columns == (
        "geneval/colors",
        "geneval/position",
    )
    [(judge, table)] = failure_tables(evaluation, [row]).items()
    assert judge == "geneval"
    assert table.columns == ("right", "missing", "color")
    means = {r.label: [r.means[name].mean for name in table.columns] for r in table.rows}
    assert means == {"base: colors": [0.7, 0.1, 0.2], "base: position": [0.3, 0.4, 0.3]}
