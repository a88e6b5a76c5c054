"""Turn a finished run of main.py into the miniature's files.

    python scripts/miniature/export.py autoencoder --run RUN --output FILE.safetensors
    python scripts/miniature/export.py model --run RUN --output models/miniature

RUN is a log folder of main.py. Averaged weights are taken where the run kept them.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from ldm.util import UserError, cli_main

log = logging.getLogger(__name__)
PROBES = 512  # images that the latents' scale is measured on


def read_run(run: Path) -> tuple[Any, Any, int]:
    """Return a run's configuration, its trained model (averaged weights in place) and its step."""
    import torch
    from omegaconf import OmegaConf

    from ldm.checkpoint.files import read_state_dict
    from ldm.training.resume import read_checkpoint
    from ldm.util import instantiate_from_config

    checkpoint = run / "checkpoints" / "last.ckpt"
    configs = sorted((run / "configs").glob("*-project.yaml"))
    if not checkpoint.is_file() or not configs:
        raise UserError(f"{run} is no log folder of main.py: checkpoints/last.ckpt or configs lack")
    config = OmegaConf.load(configs[-1])
    model = instantiate_from_config(config.model)
    state = read_state_dict(checkpoint)
    model.load_state_dict(state, strict=False)
    if model.model_ema is not None:
        model.model_ema.copy_to(getattr(model, "model", model))
    torch.set_grad_enabled(False)
    return config, model.eval(), read_checkpoint(checkpoint).step


def latent_scale(autoencoder: Any, dataset: Any) -> float:
    """Return one over the standard deviation of the sampled latents of the first images."""
    import torch

    values = []
    for first in range(0, PROBES, 64):
        images = [torch.from_numpy(dataset.image(i)) for i in range(first, first + 64)]
        posterior = autoencoder.encode(torch.stack(images).permute(0, 3, 1, 2))
        values.append(posterior.sample())
    return 1.0 / float(torch.cat(values).std())


def export_autoencoder(run: Path, output: Path) -> float:
    """Write a run's autoencoder, return the scale that gives its latents unit variance."""
    from safetensors.torch import save_file

    from ldm.util import instantiate_from_config

    config, model, step = read_run(run)
    scale = latent_scale(model, instantiate_from_config(config.data.params.train))
    state = {k: v.contiguous() for k, v in model.state_dict().items() if "model_ema" not in k}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, output, metadata={"format": "pt", "step": str(step), "scale": f"{scale:.4f}"})
    log.info(f"{output}: {len(state)} tensors of step {step}; scale_factor {scale:.4f}")
    return scale


def inference_config(config: Any) -> Any:
    """Return what rendering and learning words need of a training configuration."""
    from omegaconf import OmegaConf

    model = OmegaConf.create(OmegaConf.to_container(config.model))
    model.params.update(cond_stage_trainable=False, use_ema=False)
    training = ("scheduler_config", "ema_decay", "monitor", "loss_weighting", "timestep_power")
    for name in (*training, "ckpt_path"):
        model.params.pop(name, None)
    model.params.first_stage_config.params.pop("ckpt_path", None)
    model.pop("base_learning_rate", None)
    return OmegaConf.create({"model": model})


def export_model(run: Path, output: Path) -> None:
    """Write the whole model in half precision and the configuration that reads it."""
    import torch
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    config, model, step = read_run(run)
    tables = {name for name, _ in model.named_buffers(recurse=False)}
    state = {
        name: value.to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if name not in tables and "model_ema" not in name and "to_logits" not in name
    }
    output.mkdir(parents=True, exist_ok=True)
    save_file(state, output / "model.safetensors", metadata={"format": "pt", "step": str(step)})
    OmegaConf.save(inference_config(config), output / "config.yaml")
    size = (output / "model.safetensors").stat().st_size / 2**20
    log.info(f"{output}/model.safetensors: step {step}, {len(state)} tensors, {size:.1f} MiB")


def main() -> int:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("autoencoder", "model"))
    parser.add_argument("--run", type=Path, required=True, help="log folder of main.py")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    export = export_autoencoder if options.what == "autoencoder" else export_model
    export(options.run, options.output)
    return 0


if __name__ == "__main__":
    cli_main(main)
