"""The translator's step against the original maths written plainly in fp32, in one process, measured in turn.

    python -m benchmarks.step [--json FILE] [--width 64] [--blocks 9] [--size 256x128] [--rounds 5] [--profile]

Ratios are plain seconds ÷ our seconds, medians over the rounds: above 1 is faster than plain. bf16 is measured only
where the device has bf16 matrix units; elsewhere it is emulated and slow. The last mode is also measured with guidance
through the default expert, with 1 and with 8 labelled images; those figures are guided seconds ÷ unguided seconds.
``--profile`` prints where an unguided step of that mode spends its time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.common import describe_machine, print_table, write_json
from benchmarks.plain_cyclegan import PlainCycleGAN
from raydelta.compute.device import Place, has_bf16_units
from raydelta.config import Config, load_config, override
from raydelta.data.pixels import Batch
from raydelta.networks import build_segmenter
from raydelta.networks.layers import freeze
from raydelta.training.translator import TranslatorTraining

CLASSES, GUIDED = 11, 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--size", default="256x128")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width, height = map(int, options.size.split("x"))
    config = load_config(
        overrides={
            "guidance.weight": 0.0,
            "generator": {"width": options.width, "blocks": options.blocks, "identity_start": False},
            "discriminator": {"width": options.width, "layers": 3},
            "translator.pool": 0,
        }
    )
    real, synthetic = (torch.rand(options.batch, 3, height, width, device=device) * 2 - 1 for _ in range(2))

    labels = torch.randint(CLASSES, (GUIDED, height, width), device=device)
    labelled = torch.rand(GUIDED, 3, height, width, device=device) * 2 - 1

    plain = PlainCycleGAN(options.width, options.blocks, options.width, 3, device)
    steps: dict[str, Callable[[], object]] = {"plain_fp32": lambda: plain.step(real, synthetic)}
    units = has_bf16_units(device)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and not units:
            continue
        for mode in ("eager", "compiled"):
            if mode == "compiled" and options.no_compile:
                continue
            place, compiled, unguided = Place(device, dtype=dtype), mode == "compiled", f"{mode}_{name}"
            batch: dict[str, Batch] = {"real": (real, None), "synthetic": (synthetic, None)}
            steps[unguided] = our_step(config, place, compiled, batch)
    guided = {f"{unguided}_guided_{count}": count for count in sorted({options.batch, GUIDED})}
    for name, count in guided.items():
        with_labels = batch | {"labelled": (labelled[:count], labels[:count])}
        steps[name] = our_step(override(config, {"guidance.weight": 0.5}), place, compiled, with_labels)

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 2):  # the first two warm up: allocation, oneDNN or cuDNN choices, compilation
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    names = ["eager_fp32", "compiled_fp32", "eager_bf16", "compiled_bf16"]
    ratios: dict[str, float | None] = dict.fromkeys(names)
    for name in names:
        if name in seconds:
            pairs = zip(seconds["plain_fp32"], seconds[name], strict=True)
            ratios[name] = statistics.median(plain / ours for plain, ours in pairs)
    costs = {
        name: statistics.median(ours / base for ours, base in zip(seconds[name], seconds[unguided], strict=True))
        for name in guided
    }
    rows = [(name, statistics.median(values), ratios.get(name)) for name, values in seconds.items()]
    print_table(("step", "median s", "plain ÷ it"), rows)
    print_table(("guided step", "÷ unguided"), costs.items())
    if not units:
        print("this device has no bf16 matrix units: bf16 not measured, and not used by precision: auto")
    if options.profile:
        with torch.profiler.profile() as profile:
            steps[unguided]()
        order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60))
    write_json(
        options.json,
        {
            "machine": describe_machine(device),
            "options": vars(options),
            "seconds": seconds,
            "ratios": ratios,
            "guided": costs,
        },
    )


def our_step(config: Config, place: Place, compiled: bool, batch: Mapping[str, Batch]) -> Callable[[], object]:
    """One step of a fresh translator on fixed images, guided where some of them have labels."""
    expert = freeze(build_segmenter(config.segmenter, CLASSES)) if "labelled" in batch else None
    training = TranslatorTraining(config, expert, place)
    if compiled:
        training.compile()
    return lambda: training.step(batch, 0.0)


if __name__ == "__main__":
    main()
