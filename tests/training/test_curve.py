from pathlib import Path

from raydelta.training.curve import append_report, format_curve, losses_of, read_curve


def test_what_a_resumed_training_reports_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    for step, loss in [(2, 1.0), (4, 0.9), (6, 0.8), (4, 0.7), (6, 0.6), (8, 0.5)]:
        append_report(path, {"step": step, "loss": loss})
    curve = read_curve(path)
    assert [(report["step"], report["loss"]) for report in curve] == [(2, 1.0), (4, 0.7), (6, 0.6), (8, 0.5)]
    path.write_text(format_curve(curve))
    assert read_curve(path) == curve


def test_broken_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo\n\xff\xfe\n[3]\n{"step": "4"}\n{"step": 5}\n')
    assert read_curve(path) == [{"step": 1}, {"step": 5}]


def test_no_file_is_no_curve_and_no_folder_is_not_made(tmp_path: Path) -> None:
    away = tmp_path / "away" / "curve.jsonl"
    append_report(away, {"step": 1})
    assert read_curve(away) == []
    assert not away.parent.exists(), "a folder made where a mount was would hide that it is away"


def test_the_losses_of_a_report_and_of_one_of_an_older_version() -> None:
    terms = {"gan_r2s": 0.4, "guidance": 1.2}
    rest = {"miou": 20.0, "device_seconds": 3.0, "seconds_step": 1.0, "gflops": 2.0}
    assert losses_of({"step": 2, "steps": 4, "losses": terms} | rest) == terms
    assert losses_of({"step": 2, "steps": 4} | terms | rest) == terms
    assert losses_of({"step": 2, "steps": 4} | terms | {"device_seconds": 3.0, "seconds_step": 1.0}) == terms
    assert losses_of({"step": 2, "steps": 4, "losses": {}} | rest) == {}
