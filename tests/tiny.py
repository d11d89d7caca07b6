"""The smallest config that still runs everything: what several test modules train."""

TINY: dict[str, object] = {
    "data.width": 64,
    "data.height": 32,
    "data.synthetic_images": 24,
    "data.real_images": 20,
    "data.test_images": 8,
    "labels.budget": 4,
    "labels.validation": 2,
    "segmenter.depth": 3,
    "segmenter.decoder_channels": [16, 8, 8],
    "expert.steps": 6,
    "expert.batch": 4,
    "generator.width": 4,
    "generator.blocks": 1,
    "discriminator.width": 4,
    "translator.steps": 6,
    "translator.batch": 2,
    "student.steps": 2,
    "student.batch": 4,
    "compute.report_every": 2,
    "compute.checkpoint_every": 2,
}

TINY_ARGUMENTS = [f"{key}={value}" for key, value in TINY.items()]
