"""`scripts/benchmark.py`: what caching, fused attention and half precision bring, side by side.

All variants run in one process on one model and one batch, in turns, so that a busy or a warm
machine strikes them alike; what is reported is the ratio to the first.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.common import Parser, choose_device
from ldm.resources import ROOT
from ldm.util import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
EXAMPLES = """examples:
  python scripts/benchmark.py
  python scripts/benchmark.py --config configs/finetune.yaml --batch_size 8 --device cuda \\
      model.params.cond_stage_config.params.tokenizer=FOLDER
"""


@dataclass(frozen=True)
class Variant:
    """One way to do the same work.

    Attributes:
        name: as it is printed.
        cached: latents from the kept posteriors, not from encoding the images again.
        fused: attention in one kernel, not as softmax(q kᵀ) v with the matrix in memory.
        half: bfloat16 where autocast finds it safe.
        checkpointing: None as configured, else recomputing activations on or off.
    """

    name: str
    cached: bool = True
    fused: bool = True
    half: bool = False
    checkpointing: bool | None = None


TRAINING = (
    Variant("as configured"),
    Variant("encoding at every step", cached=False),
    Variant("explicit attention", fused=False),
    Variant("activations kept", checkpointing=False),
    Variant("activations recomputed", checkpointing=True),
    Variant("bfloat16", half=True),
    Variant("as the original did", cached=False, fused=False, checkpointing=False),
)
SAMPLING = (
    Variant("as configured"),
    Variant("explicit attention", fused=False),
    Variant("bfloat16", half=True),
)


@dataclass(frozen=True)
class Timing:
    """Median seconds of one repetition, and the most GPU memory it took, in MiB (0 on a CPU)."""

    seconds: float
    memory: float


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="benchmark.py",
        description="Time a training step and a sampling step of a word's configuration in several "
        "variants, in turns, and print the ratios.  Weights are random: time does not depend on "
        "them.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs/miniature/finetune.yaml")
    parser.add_argument("--batch_size", type=int, default=8, help="images a step (8)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant (5)")
    parser.add_argument("--repeat", type=int, default=5, help="steps in a turn (5)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps (cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's choice)")
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="entries of the configuration"
    )
    return parser.parse_args(argv)


def build(options: argparse.Namespace, device: str) -> Any:
    """Build the configuration's model with random weights, on the device.

    Raises:
        UserError: no such file, or one that learns no word.
    """
    import torch
    from omegaconf import OmegaConf

    from ldm.util import instantiate_from_config

    if not options.config.is_file():
        raise UserError(f"--config {options.config}: no such file")
    dots = OmegaConf.from_dotlist(options.overrides)
    config = OmegaConf.merge(OmegaConf.load(options.config), dots)
    if OmegaConf.select(config, "model.params.personalization_config") is None:
        raise UserError(f"{options.config} learns no word: it has no personalization_config")
    torch.manual_seed(0)
    with torch.device(device):
        model = instantiate_from_config(config.model)
    model.learning_rate, model.seed = 1e-3, 0
    return model.to(device).train()


def make_batch(model: Any, size: int) -> dict[str, Any]:
    """Return a complete batch of noise images under one caption, as the loader gives it."""
    import torch

    side = model.image_size * model.first_stage_downsampling
    word = model.embedding_manager.placeholders[0]
    batch = {
        "image": torch.rand(size, side, side, 3) * 2 - 1,
        "caption": [f"a photo of a {word}"] * size,
        "sample": torch.arange(size),
    }
    return batch | model.batch_noise()(batch)


@contextmanager
def applied(variant: Variant, model: Any) -> Iterator[None]:
    """Let the model work in a variant's way."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    modules = [m for m in model.modules() if isinstance(getattr(m, "use_checkpoint", None), bool)]
    before = [m.use_checkpoint for m in modules]
    with ExitStack() as stack:
        if not variant.fused:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if variant.half:
            stack.enter_context(torch.autocast(model.device.type, torch.bfloat16))
        try:
            for module in modules if variant.checkpointing is not None else ():
                module.use_checkpoint = variant.checkpointing
            yield
        finally:
            for module, value in zip(modules, before, strict=True):
                module.use_checkpoint = value


def training_step(model: Any, batch: dict[str, Any]) -> Callable[[Variant], None]:
    """Return what takes one optimizer step of the word."""
    import torch

    with torch.no_grad():
        cached = batch | {"moments": model.encode_first_stage(model.images(batch)).parameters}
    optimizer = torch.optim.AdamW(model.embedding_manager.embedding_parameters(), lr=1e-3)

    def step(variant: Variant) -> None:
        loss = model.shared_step(cached if variant.cached else batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def sampling_step(model: Any, size: int) -> Callable[[Variant], None]:
    """Return what evaluates the U-Net for one guided sampling step: [uncond, cond] in one batch."""
    import torch

    word = model.embedding_manager.placeholders[0]
    with torch.no_grad():
        texts = [""] * size + [f"a photo of a {word}"] * size
        conditioning = model.get_learned_conditioning(texts)
    shape = (2 * size, model.channels, model.image_size, model.image_size)
    x = torch.randn(shape, device=model.device)
    t = torch.full((2 * size,), 500, device=model.device)

    def step(_: Variant) -> None:
        with torch.no_grad():
            model.apply_model(x, t, conditioning)

    return step


def measure(
    model: Any,
    variants: Sequence[Variant],
    step: Callable[[Variant], None],
    rounds: int,
    repeat: int,
) -> list[Timing]:
    """Time a step in each variant, in turns, after one repetition to warm up."""
    seconds: list[list[float]] = [[] for _ in variants]
    memory = [0.0] * len(variants)
    for round_ in range(rounds + 1):
        for i, variant in enumerate(variants):
            with applied(variant, model):
                spent, peak = _timed(lambda v=variant: step(v), repeat, model.device)  # type: ignore[misc]
            if round_:  # the first turn warms up
                seconds[i].append(spent)
                memory[i] = max(memory[i], peak)
    return [Timing(statistics.median(s), m) for s, m in zip(seconds, memory, strict=True)]


def _timed(step: Callable[[], None], repeat: int, device: torch.device) -> tuple[float, float]:
    """Return seconds of a repetition and the peak memory in MiB (CUDA)."""
    import torch

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    for _ in range(repeat):
        step()
    if cuda:
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    spent = (time.perf_counter() - start) / repeat
    return spent, torch.cuda.max_memory_allocated(device) / 2**20 if cuda else 0.0


def table(title: str, variants: Sequence[Variant], timings: Sequence[Timing]) -> str:
    """Lay timings out as Markdown: ratios to the first variant; above 1 is slower."""
    first = timings[0].seconds
    memory = any(timing.memory for timing in timings)
    lines = [f"| {title} | time | ratio |" + (" GPU memory |" if memory else "")]
    lines.append("|---|---:|---:|" + ("---:|" if memory else ""))
    for variant, timing in zip(variants, timings, strict=True):
        line = f"| {variant.name} | {timing.seconds * 1e3:.1f} ms | {timing.seconds / first:.2f} |"
        lines.append(line + (f" {timing.memory:.0f} MiB |" if memory else ""))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse(argv)
    for name in ("batch_size", "rounds", "repeat"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(options, name)}")
    device = choose_device(options.device)
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    model = build(options, device)
    batch, size = make_batch(model, options.batch_size), options.batch_size
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    log.info("%s on %s, %d images, torch %s\n", options.config, name, size, torch.__version__)
    for title, variants, step in (
        ("training step", TRAINING, training_step(model, batch)),
        ("guided sampling step", SAMPLING, sampling_step(model, size)),
    ):
        timings = measure(model, variants, step, options.rounds, options.repeat)
        log.info("%s\n", table(title, variants, timings))
    return 0
