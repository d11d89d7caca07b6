from pathlib import Path

import pytest
import yaml

from raydelta.config import PRESETS, Config, load_config, override, save_config
from raydelta.errors import UserError

SECTIONS = ("expert", "translator", "guidance", "student")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("key", "named", "allowed"),
    [
        ("sead", "sead", ["seed", "guidance", "translator"]),
        ("cycle.reel", "cycle.reel", ["real", "synthetic", "identity"]),
        ("guidence.weight", "guidence", ["guidance", "cycle"]),
        ("compute.worker", "compute.worker", ["workers", "precision"]),
    ],
)
def test_an_unknown_field_is_named_with_what_is_allowed(key: str, named: str, allowed: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides=[f"{key}=1"])
    message = str(caught.value)
    assert f"'{named}'" in message
    assert set(allowed) <= set(message.partition("allowed here:")[2].replace(",", " ").split())


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("guidance.weight", "1.5", "1"),
        ("guidance.weight", "-0.1", "0"),
        ("translator.ema", "1.0", "less than 1"),
        ("translator.steps", "0", "1"),
        ("expert.learning_rate", "0.0", "greater than 0"),
        ("expert.learning_rate", "2.0", "1"),
        ("augment.crop", "0.0", "greater than 0"),
        ("data.width", "16", "32"),
        ("data.width", "40", "multiple of 16"),
        ("discriminator.layers", "4", "3"),
        ("segmenter.depth", "2", "3"),
        ("cycle.real", "-1", "0"),
        ("seed", "-1", "0"),
        ("guidance.weight", "nan", "finite"),
        ("cycle.real", "inf", "finite"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_bound(key: str, value: str, bound: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides=[f"{key}={value}"])
    message = str(caught.value)
    assert message.startswith(f"{key} = {value}: ")
    assert bound in message.partition(": ")[2]


@pytest.mark.parametrize("text", ["seed=1.5", "seed=a", "seed=", "compute.compile=maybe", "compute.precision=fp8"])
def test_a_value_of_the_wrong_type_is_named(text: str) -> None:
    with pytest.raises(UserError, match=text.partition("=")[0]):
        load_config(overrides=[text])


def test_all_bad_fields_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides=["seed=-1", "cycle.reel=2", "data.width=33"])
    assert all(name in str(caught.value) for name in ("seed", "cycle.reel", "data.width"))


def test_override_strings_are_read_as_values() -> None:
    config = load_config(
        overrides=[
            "expert.learning_rate=1e-4",
            "cycle.real=2.5",
            "segmenter.decoder_channels=[32, 16, 8, 4]",
            "segmenter.weights=null",
            "compute.workers=null",
            "compute.compile=true",
            "data.real=s3://bucket/a=b",
        ]
    )
    assert config.expert.learning_rate == 0.0001
    assert config.cycle.real == 2.5
    assert config.segmenter.decoder_channels == (32, 16, 8, 4)
    assert config.segmenter.weights is None
    assert config.compute.workers is None
    assert config.compute.compile is True
    assert config.data.real == "s3://bucket/a=b"


@pytest.mark.parametrize("text", ["seed", "=3", "", "data.width=[1", "seed={a: 1", "seed=!!python/name:os.system"])
def test_an_override_that_cannot_be_read_is_quoted(text: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides=[text])
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["data=5", "data=[1]", "data=null", "seed.x=1", "data.width.x=3"])
def test_a_section_in_place_of_a_value_or_the_reverse_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=text[:4]):
        load_config(overrides=[text])


def test_later_sources_win_and_leave_the_rest(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "seed: 3\ntranslator: {batch: 8, pool: 7}\n")
    config = load_config("gpu", file, ["translator.pool=5", "guidance.weight=0.25"])
    assert config.seed == 3
    assert config.translator.batch == 8
    assert config.translator.pool == 5
    assert config.guidance.weight == 0.25
    assert config.guidance.batch == load_config("gpu").guidance.batch != Config().guidance.batch
    assert config.cycle == Config().cycle
    assert load_config() == Config()


def test_of_two_overrides_of_a_field_the_later_wins() -> None:
    assert load_config(overrides=["seed=1", "seed=2"]).seed == 2


def test_overrides_may_be_a_mapping() -> None:
    assert load_config(overrides={"cycle.real": 5, "seed": 2}) == load_config(overrides=["cycle.real=5", "seed=2"])


def test_override_changes_a_copy_and_checks_it() -> None:
    config = Config()
    changed = override(config, {"cycle.real": 3.0})
    assert (config.cycle.real, changed.cycle.real) == (10.0, 3.0)
    assert changed.cycle.synthetic == config.cycle.synthetic
    with pytest.raises(UserError, match=r"guidance\.weight = 2"):
        override(config, {"guidance.weight": 2})


def test_every_shipped_preset_loads() -> None:
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    assert names == ["gpu", "laptop"]
    for name in names:
        config = load_config(name)
        assert len(config.segmenter.decoder_channels) == config.segmenter.depth


def test_the_laptop_preset_computes_what_the_defaults_do_with_the_segmenter_for_cpus() -> None:
    plain, laptop = Config(), load_config("laptop")
    assert laptop.segmenter.architecture == "lean"
    assert laptop.model_copy(update={"compute": plain.compute, "segmenter": plain.segmenter}) == plain


def test_an_unknown_preset_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"'lapdog'.*gpu, laptop"):
        load_config("lapdog")


def test_a_saved_config_loads_as_the_same(tmp_path: Path) -> None:
    config = load_config("gpu", overrides=["seed=4", "segmenter.weights=imagenet", "expert.learning_rate=1e-7"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(file=tmp_path / "config.yaml") == config
    assert set(yaml.safe_load((tmp_path / "config.yaml").read_text())) == set(Config.model_fields)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_student_batch_has_halves_because_joint_training_fills_them_from_two_domains(batch: int) -> None:
    with pytest.raises(UserError, match=r"student\.batch"):
        load_config(overrides=[f"student.batch={batch}"])


@pytest.mark.parametrize("side", ["width", "height"])
def test_an_image_must_halve_as_often_as_the_segmenter_is_deep(side: str) -> None:
    deep = ["segmenter.depth=5", "segmenter.decoder_channels=[8,8,8,8,8]"]
    with pytest.raises(UserError, match=f"data.{side} = 48 .*segmenter.depth = 5"):
        load_config(overrides=[*deep, f"data.{side}=48"])
    assert load_config(overrides=[*deep, f"data.{side}=96"])


@pytest.mark.parametrize(
    "text", ["a: [1", "- seed\n- data\n", "just words", "7", "seed: !!python/name:os.system", "\x00"]
)
def test_a_file_that_holds_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "mine.yaml", text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_config(file=file)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x9d")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_config(file=tmp_path / "mine.yaml")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_config(file=tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["1: 2", "data: {1: 2}", "null: 1"])
def test_a_key_that_is_no_word_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError):
        load_config(file=write(tmp_path / "mine.yaml", text))


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(file=write(tmp_path / "mine.yaml", "# nothing\n")) == Config()


def test_a_field_that_has_moved_is_read_from_older_files() -> None:
    assert load_config(overrides={"self_training.ema": 0.5}).student.ema == 0.5
    assert load_config(overrides={"self_training.ema": 0.5, "student.ema": 0.7}).student.ema == 0.7
