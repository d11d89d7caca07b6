"""The translator's step on a GPU: against plain CycleGAN, with graphs of CUDA, and with several trials on one GPU.

    python -m benchmarks.gpu [--json FILE] [--batches 1,2,4,8,16] [--trials 1,2,4] [--rounds 20]
                             [--width 64] [--blocks 9] [--size 256x128]

At the original CycleGAN's size (ResNet-9 and PatchGAN of width 64, 256×128) without guidance, images a second of one
domain, medians over rounds. Wanted: three times the pace of the plain fp32 step (TF32 where the GPU has it) at batch 1,
and twice that of the plain step in bf16 autocast, each at its best batch. The second table is for guidance with 8
labelled images: what the guided step costs, and the pace of trials that share the GPU, each a process of its own. It
runs on a CPU too, uncompiled; the figures for a CPU are those of ``benchmarks.step``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.multiprocessing

from benchmarks.common import describe_machine, print_table, write_json
from benchmarks.plain_cyclegan import PlainCycleGAN
from raydelta.compute.device import Place
from raydelta.config import Config, load_config, override
from raydelta.data.augment import Batch
from raydelta.networks import build_segmenter
from raydelta.networks.layers import freeze
from raydelta.training.translator import TranslatorTraining

CLASSES, GUIDED = 11, 8
WAYS = ("eager", "compiled", "CUDA graphs")
WARM_UP = 4  # steps before those that count: allocation, choice of kernels, compilation, recording of graphs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--batches", type=_numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--trials", type=_numbers, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--size", default="256x128")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.fp32_precision = "tf32"
    width, height = map(int, options.size.split("x"))
    config = load_config(
        overrides={
            "data": {"width": width, "height": height},
            "guidance": {"weight": 0.0, "batch": GUIDED},
            "generator": {"width": options.width, "blocks": options.blocks, "identity_start": False},
            "discriminator": {"width": options.width, "layers": 3},
        }
    )
    rates: dict[str, list[float | None]] = {}
    for way in ("plain fp32", "plain bf16", *(f"{precision} {way}" for precision in ("fp32", "bf16") for way in WAYS)):
        rates[way] = [attempt(way, config, batch, device, options.rounds) for batch in options.batches]
    print_table(("images/s at batch", *options.batches), [(way, *values) for way, values in rates.items()])
    first = {way: values[0] for way, values in rates.items()}
    best = {way: max((value for value in values if value), default=None) for way, values in rates.items()}
    ours = [way for way in rates if not way.startswith("plain")]
    ratios = {
        f"batch {options.batches[0]} against plain fp32": _ratio([first[way] for way in ours], first["plain fp32"]),
        "best batch against plain bf16": _ratio([best[way] for way in ours], best["plain bf16"]),
    }
    print_table(("ratio", "×"), ratios.items())

    guided = override(config, {"guidance.weight": 0.5, "translator.batch": 2})
    steps = {way: attempt(f"bf16 {way}", guided, 2, device, options.rounds) for way in WAYS}
    packed = {str(count): pace_together(count, guided, device, options.rounds) for count in options.trials}
    print_table(("guided, batch 2", "images/s"), steps.items())
    print_table(("trials on the GPU", "images/s"), packed.items())
    result = {"machine": describe_machine(device), "options": vars(options), "images_per_second": rates}
    write_json(options.json, result | {"ratios": ratios, "guided": steps, "packed": packed})


def attempt(way: str, config: Config, batch: int, device: torch.device, rounds: int) -> float | None:
    """Images of one domain a second; None, with the reason printed, where it does not run."""
    if way.endswith(WAYS[1:]) and device.type != "cuda":
        return None
    try:
        return batch / median_seconds(make_step(way, config, batch, device), device, rounds)
    except Exception as error:  # a way that the installed torch cannot go is a row without figures
        print(f"{way} at batch {batch}: {' '.join(str(error).split())[:200]}")
        return None
    finally:
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def make_step(way: str, config: Config, batch: int, device: torch.device) -> Callable[[], object]:
    """One step of fresh networks on fixed images."""
    precision, _, how = way.partition(" ")
    shape = (batch, 3, config.data.height, config.data.width)
    real, synthetic = (torch.rand(shape, device=device) * 2 - 1 for _ in range(2))
    settings = config.generator
    if precision == "plain":
        plain = PlainCycleGAN(settings.width, settings.blocks, config.discriminator.width, 3, device)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=how == "bf16"):
                plain.step(real, synthetic)

        return step
    images: dict[str, Batch] = {"real": (real, None), "synthetic": (synthetic, None)}
    expert = None
    if config.guidance.weight > 0:
        expert = freeze(build_segmenter(config.segmenter, CLASSES))
        labelled = torch.rand((GUIDED, *shape[1:]), device=device) * 2 - 1
        images["labelled"] = labelled, torch.randint(CLASSES, (GUIDED, *shape[2:]), device=device)
    place = Place(device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    training = TranslatorTraining(config, expert, place)
    if how == "compiled":
        training.compile()
    if how == WAYS[-1]:
        for network in (*training.networks().values(), *([training.expert] if training.expert else [])):
            network.compile(dynamic=False, mode="reduce-overhead")

    def graphed() -> object:
        torch.compiler.cudagraph_mark_step_begin()
        return training.step(images, 0.0)

    return graphed if how == WAYS[-1] else lambda: training.step(images, 0.0)


def median_seconds(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Of a step, after some that warm up."""
    seconds = []
    for turn in range(WARM_UP + rounds):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def pace_together(count: int, config: Config, device: torch.device, rounds: int) -> float:
    """Images of one domain a second of so many guided trainings at once."""
    context = torch.multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    barrier = context.Barrier(count)
    arguments = (config, device, rounds, barrier, results)
    processes = [context.Process(target=_run_beside, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    paces = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return sum(paces)


def _run_beside(config: Config, device: torch.device, rounds: int, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    step = make_step("bf16 eager", config, config.translator.batch, device)
    median_seconds(step, device, 1)
    barrier.wait()
    results.put(config.translator.batch / median_seconds(step, device, rounds))


def _ratio(ours: Sequence[float | None], plain: float | None) -> float | None:
    measured = [value for value in ours if value]
    return max(measured) / plain if measured and plain else None


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
