import csv
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import raydelta
from raydelta import cli
from raydelta.config import SegmenterConfig
from raydelta.data.tables import values_in
from raydelta.data.taxonomy import BUILT_IN, CAMVID11
from raydelta.deploy.frames import Task, read_frames_of, write_frame
from raydelta.deploy.inputs import find_inputs
from raydelta.deploy.network import (
    Chain,
    ChainConfig,
    DeployConfig,
    Deployed,
    enlarge,
    read_network,
    target_size,
)
from raydelta.deploy.predict import Segmenter, predict
from raydelta.deploy.windows import enlarged_ids, predict_windows
from raydelta.errors import UserError
from tests.sets import HEIGHT, WIDTH
from tests.tiny import kill_family

FRAMES = 3


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


def write_video(path: Path, frames: int = FRAMES) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(photograph(48, 64, number), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of all sorts and what is none."""
    folder = tmp_path / "in"
    (folder / "day 1").mkdir(parents=True)
    picture = Image.fromarray(photograph(50, 80))
    picture.save(folder / "plain.png")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("RGBA").save(folder / "day 1" / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(folder / "day 1" / "turned.jpg", exif=exif)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(folder / "deep.png")
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    whole = (folder / "day 1" / "turned.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    write_video(folder / "drive.mp4")
    return folder


def ids(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def run_predictor(trained: dict[str, Any], out: Path, given: list[str], **changes: Any) -> dict[str, list]:
    run = trained["translator"].directory
    settings = {"method": None, "kinds": ("ids",), "values": tuple(range(256)), "window": None, "batch": 2} | changes
    task = Task(run=run, out=out, taxonomy=CAMVID11, **settings)
    segmenter = Segmenter(task, read_network(run))
    found: dict[str, list] = {"name": [], "reason": [], "images": []}
    for item in find_inputs(given)[0]:
        frames = [write_frame(frame, task) for frame in segmenter.segment(list(read_frames_of(item, task)))]
        found["name"].append(item.name)
        found["reason"].append(frames[-1]["reason"])
        found["images"].append(sum(bool(frame["mask"]) for frame in frames))
    return found


def test_masks_of_a_folder_and_going_on(
    trained: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, out = trained["translator"].directory, tmp_path / "out"
    command = ["raydelta", "predict", str(run), str(folder), "--out", str(out), "--kinds", "ids,colour,overlay"]
    monkeypatch.setattr(sys, "argv", [*command, "--batch", "4"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    names = {"plain", "grey", "day 1/transparent", "day 1/turned", *(f"drive/{n:06}" for n in range(1, FRAMES + 1))}
    for kind in ("ids", "colour", "overlay"):
        assert {p.relative_to(out / kind).with_suffix("").as_posix() for p in (out / kind).rglob("*.png")} == names
    image = torch.from_numpy(photograph(50, 80))
    model = raydelta.load(run)
    assert (ids(out / "ids" / "plain.png") == model(image[None]).ids[0].numpy()).all()
    assert (ids(out / "ids" / "day 1" / "transparent.png") == ids(out / "ids" / "plain.png")).all()
    assert ids(out / "ids" / "day 1" / "turned.png").shape == (80, 50)
    palette = np.array(CAMVID11.palette, dtype=np.uint8)
    assert (ids(out / "colour" / "grey.png") == palette[ids(out / "ids" / "grey.png")]).all()
    skipped = dict(list(csv.reader((out / "skipped.csv").open()))[1:])
    assert {Path(file).name for file in skipped} == {"deep.png", "empty.png", "text.jpg", "cut.jpg"}
    assert skipped[str(folder / "empty.png")] == "the file is empty (0 bytes)"
    assert "truncated" in skipped[str(folder / "cut.jpg")]
    assert f"skipped      {folder / 'text.jpg'}: cannot be decoded" in capsys.readouterr().out

    kept = (out / "ids" / "plain.png").stat().st_mtime_ns
    (out / "ids" / "grey.png").unlink()
    (out / "overlay" / "drive" / "000002.png").unlink()
    outcome = predict(run, [str(folder)], out, kinds=("ids", "colour", "overlay"))
    assert (outcome.images, outcome.before, len(outcome.skipped)) == (2, 3, 4)
    assert (out / "ids" / "plain.png").stat().st_mtime_ns == kept
    assert (out / "ids" / "grey.png").exists() and (out / "overlay" / "drive" / "000002.png").exists()
    with pytest.raises(UserError, match="other kinds; choose another folder"):
        predict(run, [str(folder)], out, kinds=("ids",))


def test_nothing_to_predict_is_exit_code_1_and_nothing_left_to_predict_is_0(
    trained: dict[str, Any], tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.png").touch()
    write_video(tmp_path / "drive.mp4")
    for given, code in [("empty.png", 1), ("drive.mp4", 0), ("drive.mp4", 0)]:
        command = ["predict", str(trained["translator"].directory), str(tmp_path / given)]
        monkeypatch.setattr(sys, "argv", ["raydelta", *command, "--out", str(tmp_path / f"{given}.out")])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == code
    assert "0 bytes" in (tmp_path / "empty.png.out" / "skipped.csv").read_text()


def test_what_is_refused_writes_nothing(trained: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    run, out = trained["translator"].directory, tmp_path / "out"
    Image.fromarray(photograph(8, 8)).save(folder / "plain.jpg")
    for given, kinds, message in [
        (["missing.png"], ("ids",), "missing.png: there is no such file or folder"),
        ([str(folder / "*.tif")], ("ids",), "no photograph or video there"),
        ([str(folder)], ("ids",), "would both become 'plain'"),
        ([str(folder / "grey.png")], ("ids", "mask"), "choose from ids, colour, overlay"),
    ]:
        with pytest.raises(UserError, match=message):
            predict(run, given, out, kinds=kinds)
    with pytest.raises(UserError, match="at least 16 pixels"):
        predict(run, [str(folder / "grey.png")], out, window=(4, 64))
    with pytest.raises(UserError, match="there are camvid11"):
        predict(run, [str(folder / "grey.png")], out, taxonomy="mars")
    with pytest.raises(UserError, match="not from raydelta predict"):
        predict(run, [str(folder / "grey.png")], folder)
    assert not out.exists()


def test_globs_and_names(folder: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [item.name for item in find_inputs([str(folder / pattern)])[0]]

    assert names("*/t*.[jp]*") == ["day 1/transparent", "day 1/turned"]
    assert names("**/*.png") == ["day 1/transparent", "deep", "empty", "grey", "plain"]
    assert names("day 1") == ["transparent", "turned"]
    assert names("plai?.png") == ["plain"]
    (folder / "drive").mkdir()
    Image.fromarray(photograph(8, 8)).save(folder / "drive" / "000001.png")
    with pytest.raises(UserError, match="named like the video"):
        names(".")


def test_videos_need_pyav_and_say_so(
    trained: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.mp4").write_bytes((folder / "drive.mp4").read_bytes()[:300])
    found = run_predictor(trained, tmp_path / "out", [str(folder / "*.mp4")])
    assert found["images"] == [0, FRAMES] and "cannot be decoded after 0 frames" in found["reason"][0]
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'raydelta\[video\]'"):
        find_inputs([str(folder / "drive.mp4")])


def test_inputs_in_a_bucket(trained: dict[str, Any], tmp_path: Path, s3: str) -> None:
    import boto3

    content = io.BytesIO()
    Image.fromarray(photograph(50, 80)).save(content, "PNG")
    for name in ("predict/a/1.png", "predict/b/2 #.png"):
        boto3.client("s3").put_object(Bucket=s3.removeprefix("s3://"), Key=name, Body=content.getvalue())
    assert [item.name for item in find_inputs([f"{s3}/predict/a/1.png", f"{s3}/predict/b/*"])[0]] == ["1", "2 #"]
    found = run_predictor(trained, tmp_path, [f"{s3}/predict"])
    assert found["name"] == ["a/1", "b/2 #"] and found["reason"] == ["", ""]
    assert (ids(tmp_path / "ids" / "a" / "1.png") == ids(tmp_path / "ids" / "b" / "2 #.png")).all()


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"s3://bucket/x\.png: s3://bucket cannot be reached"):
        find_inputs(["s3://key:secret@bucket/x.png"])


def test_ids_of_other_taxonomies(trained: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    values, void = values_in("cityscapes", CAMVID11)
    named = dict(zip(CAMVID11.classes, values, strict=False))
    assert (named["road"], named["sky"], named["car"], named["pedestrian"], values[255]) == (7, 23, 26, 24, 0)
    assert not void
    assert values_in("cityscapes19", BUILT_IN["synthia16"])[0][255] == 255
    assert values_in("camvid11", BUILT_IN["cityscapes19"])[1]
    given = [str(folder / "plain.png")]
    run_predictor(trained, tmp_path / "own", given)
    run_predictor(trained, tmp_path / "theirs", given, values=values)
    own, theirs = (ids(tmp_path / name / "ids" / "plain.png") for name in ("own", "theirs"))
    assert (theirs == np.array(values, dtype=np.uint8)[own]).all()


def test_one_photograph_by_the_command_line_without_ray(travelled: Path, tmp_path: Path) -> None:
    """The overlay appears beside the photograph, without Ray or a data set, and replaces only one of ours.

    kornia, which takes half a second to import, is for training.
    """
    photo = tmp_path / "photo.jpg"
    Image.fromarray(photograph(50, 80)).save(photo)
    code = "import sys; sys.modules['ray'] = sys.modules['kornia'] = None; from raydelta import cli; cli.main()"
    command = [sys.executable, "-c", code, "predict", "latest", str(photo), "--runs", str(travelled)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("predict      loading latest")
        assert "model        guided (translator-" in done.stdout
        assert f"written      {tmp_path / 'photo-overlay.png'}" in done.stdout
    assert Image.open(tmp_path / "photo-overlay.png").size == (80, 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo-overlay.png", "photo.jpg", "there"]
    Image.fromarray(photograph(50, 80)).save(tmp_path / "photo-overlay.png")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "not from raydelta; rename it, or give --out" in done.stderr


def test_processes_that_read_and_write_do_without_torch() -> None:
    code = "import sys, raydelta.deploy.frames; assert not {'torch', 'ray'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_out_what_is_no_single_photograph_is_refused(trained: dict[str, Any], folder: Path) -> None:
    for given, message in [
        (str(folder), "no single photograph; say with --out"),
        (str(folder / "*.png"), "no single photograph; say with --out"),
        ("s3://bucket/a.png", "no single photograph; say with --out"),
        (str(folder / "drive.mp4"), "a video; say with --out"),
        (str(folder / "missing.png"), "there is no such file or folder"),
    ]:
        with pytest.raises(UserError, match=message):
            predict(trained["translator"].directory, [given])


def test_one_name_does_not_stop_the_others(trained: dict[str, Any], tmp_path: Path) -> None:
    photographs = tmp_path / "in"
    (photographs / "a.png").mkdir(parents=True)
    picture = Image.fromarray(photograph(20, 30))
    for name in ("a.jpg", "a.png/b.png", f"{'c' * 248}.jpg", f"{'d' * 250}.jpg", "e.jpg"):
        picture.save(photographs / name)
    done = predict(trained["translator"].directory, [str(photographs)], tmp_path / "out")
    written = {path.relative_to(tmp_path / "out" / "ids").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert written == {"a.png", f"{'c' * 248}.png", f"{'d' * 250}.png", "e.png"}
    assert done.images == 4
    assert [(Path(file).name, reason) for file, reason in done.skipped] == [
        ("b.png", f"its folder is named like the mask of {photographs / 'a.jpg'}; rename one of them")
    ]


def test_a_mask_whose_name_is_taken_is_skipped_with_the_reason(trained: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one.jpg", "two.jpg"):
        Image.fromarray(photograph(20, 30)).save(tmp_path / name)
    given, out = [str(tmp_path / "one.jpg"), str(tmp_path / "two.jpg")], tmp_path / "out"
    predict(trained["translator"].directory, given, out, kinds=("ids", "colour"))
    for path in out.rglob("*.png"):
        path.unlink()
    (out / "ids" / "one.png" / "in the way").mkdir(parents=True)
    done = predict(trained["translator"].directory, given, out, kinds=("ids", "colour"))
    assert done.images == 1 and (out / "ids" / "two.png").is_file()
    assert "Is a directory" in dict(done.skipped)[given[0]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("limit", ["size=64k", "size=1m,nr_inodes=8"])
def test_a_full_disk_ends_with_its_cause(trained: dict[str, Any], tmp_path: Path, limit: str) -> None:
    photographs, disk = tmp_path / "in", tmp_path / "disk"
    photographs.mkdir()
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        noise = np.random.default_rng(0).integers(0, 256, (100, 300, 3), dtype=np.uint8)
        for number in range(12):
            Image.fromarray(noise).save(photographs / f"{number:02}.png")
        with pytest.raises(UserError, match=r"disk/out/.*: cannot be written: No space left on device"):
            predict(trained["translator"].directory, [str(photographs)], disk / "out", kinds=("overlay",))
        for path in (disk / "out").rglob("[!.]*.png"):
            assert np.asarray(Image.open(path)).shape == (100, 300, 3), "every mask is whole"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_scale_is_that_of_training_in_any_shape() -> None:
    config = pointwise().config
    assert [target_size(config, *size) for size in [(32, 64), (64, 128), (100, 100), (48, 640)]] == [
        (32, 64),
        (32, 64),
        (32, 32),
        (32, 424),
    ]
    assert target_size(config, 4000, 3) == (32, 8)


def test_ids_enlarged_in_strips_are_those_of_the_whole() -> None:
    for low, high in [((32, 64), (500, 333)), ((16, 24), (7, 300)), ((32, 64), (129, 64)), ((1, 1), (65, 3))]:
        logits = torch.randn(5, *low, generator=torch.Generator().manual_seed(0))
        whole = enlarge(logits[None], *high).max(1).indices[0].byte()
        assert (enlarged_ids(logits, *high) == whole).float().mean() > 0.999


def test_a_killed_prediction_goes_on_and_every_mask_is_whole(
    trained: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    photographs, out = tmp_path / "photographs", tmp_path / "out"
    photographs.mkdir()
    for number in range(80):
        Image.fromarray(photograph(200, 300, number)).save(photographs / f"{number:03}.png")
    command = [sys.executable, "-m", "raydelta.cli", "predict", str(trained["translator"].directory), str(photographs)]
    command += ["--out", str(out), "--batch", "4"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((out / "ids").glob("*.png")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    kill_family(process)
    masks = {path.name: ids(path).shape for path in (out / "ids").glob("[!.]*.png")}
    assert 0 < len(masks) < 80 and set(masks.values()) == {(200, 300)}
    again = predict(trained["translator"].directory, [str(photographs)], out)
    assert (again.images, again.before) == (80 - len(masks), len(masks))
    assert len(list((out / "ids").glob("[!.]*.png"))) == 80


def pointwise() -> Deployed:
    """A model that knows nothing of neighbours: windows must not change what it says."""
    segmenter = SegmenterConfig(depth=3, decoder_channels=(16, 8, 8))
    chains = (ChainConfig(segmenter=segmenter),)
    config = DeployConfig(run="test", taxonomy=CAMVID11, width=WIDTH, height=HEIGHT, chains=chains)
    return Deployed(config, [Chain(nn.Conv2d(3, len(CAMVID11), 1), None)])


def test_windows_blend_to_the_whole() -> None:
    model, images = pointwise(), torch.rand(2, 3, 32, 168)
    with torch.inference_mode():
        whole = model.networks(images)
        for window in [(64, 32), (40, 16), (50, 500), (1000, 1000)]:
            assert torch.allclose(predict_windows(model, images, window), whole, atol=1e-5)
        model.chains[0] = Chain(Bordered(), None)
        blended = predict_windows(model, images, (64, 32))[0, 0, 0]
    steps = blended.diff().abs()
    assert steps.max() < 0.1, "no seam where a window ends"


class Bordered(nn.Module):
    """Says in every window something else: how bright it is as a whole, in place of what is there."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3), keepdim=True).expand(-1, len(CAMVID11), *images.shape[2:])
