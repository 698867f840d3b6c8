import os

import ray

from percent_ray.runtime import logs
from percent_ray.runtime.logs import last_lines

DEATH = "The actor died.\n\tpid: 4711\n\tnamespace: x\n\tip: {ip}\nIts end."


def test_the_end_of_a_dead_process_s_log_is_one_line(tmp_path):
    (tmp_path / "worker-ab-01-4711.err").write_text("one\ntwo\n\nthree\nfour\n")
    (tmp_path / "worker-ab-01-471.err").write_text("another\n")
    here = DEATH.format(ip=ray.util.get_node_ip_address())
    assert last_lines(here, tmp_path) == "its log ends: two | three | four"
    (tmp_path / "worker-ab-01-4711.err").write_text("x\n" * logs.LONGEST + "five\n")
    assert last_lines(here, tmp_path) == "its log ends: x | x | five", "of a long log, its end"


def test_a_log_that_is_elsewhere_or_empty_is_told(tmp_path):
    """Also where a process of this machine has the same number."""
    (tmp_path / "worker-ab-01-4711.err").write_text("another's\n")
    found = last_lines(DEATH.format(ip="203.0.113.9"), tmp_path)
    assert found == f"its log is {os.path.join(tmp_path, 'worker-*-4711.err')} on 203.0.113.9"
    (tmp_path / "worker-ab-01-4711.err").write_text("")
    assert last_lines("pid: 4711", tmp_path) == "its log is empty"
    assert last_lines("no process is named", tmp_path) == ""
