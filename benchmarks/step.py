"""The translator's step against the original maths written plainly in fp32, in one process, step by step in turn.

    python -m benchmarks.step [--json FILE] [--width 64] [--blocks 9] [--size 256x128] [--batch 1] [--rounds 5]

Ratios are plain seconds ÷ our seconds, the median over the rounds: above 1 is faster than plain. bf16 is measured where
the device has bf16 matrix units; elsewhere it is emulated, slower than fp32, and not what `precision: auto` takes.
"""

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks.common import describe_machine, print_table, write_json
from benchmarks.plain_cyclegan import PlainCycleGAN
from raydelta.config import Config, load_config
from raydelta.place import Place, has_bf16_units
from raydelta.translator import TranslatorTraining


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

    plain = PlainCycleGAN(options.width, options.blocks, options.width, 3, device)
    steps: dict[str, Callable[[], object]] = {"plain_fp32": lambda: plain.step(real, synthetic)}
    units = has_bf16_units(device)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and not units:
            continue
        for mode in ("eager", "compiled"):
            if mode == "compiled" and options.no_compile:
                continue
            steps[f"{mode}_{name}"] = our_step(config, Place(device, dtype=dtype), mode == "compiled", real, synthetic)

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
            ratios[name] = sorted(plain / ours for plain, ours in pairs)[options.rounds // 2]
    rows = [(name, sorted(values)[len(values) // 2], ratios.get(name)) for name, values in seconds.items()]
    print_table(("step", "median s", "× plain"), rows)
    if not units:
        print("this device has no bf16 matrix units: bf16 not measured, and not used by precision: auto")
    write_json(
        options.json,
        {"machine": describe_machine(device), "options": vars(options), "seconds": seconds, "ratios": ratios},
    )


def our_step(
    config: Config, place: Place, compiled: bool, real: torch.Tensor, synthetic: torch.Tensor
) -> Callable[[], object]:
    """One step of a fresh translator on fixed images."""
    training = TranslatorTraining(config, None, place)
    if compiled:
        training.compile()
    batch = {"real": (real, None), "synthetic": (synthetic, None)}
    return lambda: training.step(batch, 0.0)


if __name__ == "__main__":
    main()
