from pathlib import Path

from benchmarks.ablation import job_of, sum_up
from raydelta.config import load_config, override
from raydelta.training.job import Job, make_job
from tests.sets import REAL_NAMES, write_set
from tests.tiny import TINY


def test_a_setting_is_a_row_with_other_fields(tmp_path: Path) -> None:
    synthetic = write_set(tmp_path / "simulated", "synthetic", [("s0", "all"), ("s1", "all")])
    sets = {"data.synthetic": synthetic, "data.real": write_set(tmp_path / "street", "street", REAL_NAMES)}
    config = override(load_config(overrides=TINY), sets)
    expert = make_job("expert", config, tmp_path)

    def made(setting: str) -> Job:
        return job_of(setting, config, expert)

    two_views = made("mean teacher, two views: student.ema=0.5 self_training.weight=2")
    assert (two_views.kind, two_views.config.self_training.views) == ("mean teacher", 2)
    assert (two_views.config.student.ema, two_views.config.self_training.weight) == (0.5, 2)
    again = made("taught: guidance.teacher='taught student'")
    assert again.student is not None and again.student.kind == "taught student"
    assert made("guided").config.guidance.teacher is None


def test_differences_are_paired_by_seed() -> None:
    found = sum_up({"guided": [(30.0, 1.0), (34.0, 1.0)], "taught": [(31.0, 3.0), (35.0, 5.0)]})
    assert found["taught"]["to_first"] == "+1.0 [+1.0, +1.0]"
    assert (found["taught"]["miou"], found["taught"]["minutes"]) == (33.0, 4.0)
    assert found["guided"]["to_first"].startswith("+0.0")
