"""From an image and a prompt: how much stays of the image, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.cli import img2img
from ldm.editing.guided import from_image
from ldm.image_io import open_rgb, read_settings
from ldm.inference import generate, load_model
from ldm.sampling import Sampling
from ldm.util import UserError

MUG = Path(__file__).parents[2] / "examples" / "concepts" / "red-mug" / "1.png"


@pytest.fixture(scope="module")
def model(untrained_miniature):
    return load_model(
        untrained_miniature / "config.yaml", untrained_miniature / "model.safetensors"
    )


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.tensor(list(image.tobytes()), dtype=torch.float32)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler_a"])
def test_little_noise_keeps_the_image_and_much_does_not(model, sampler: str) -> None:
    sampling = Sampling(sampler, steps=20, scale=1.0, seed=3)

    def made(strength: float) -> torch.Tensor:
        (found,) = from_image(model, open_rgb(MUG), "a mug", sampling, strength=strength)
        return pixels(found.image)

    least = made(0.01)
    assert (made(0.05) - least).abs().mean() < (made(1.0) - least).abs().mean()
    assert torch.equal(made(0.05), made(0.05))


def test_an_image_depends_on_its_seed_alone(model) -> None:
    sampling = Sampling(steps=4, seed=3, eta=1.0, batch_size=2)
    three = from_image(model, open_rgb(MUG), "a mug", sampling, samples=3)
    assert [one.seed for one in three] == [3, 4, 5]
    last = Sampling.from_metadata(three[2].settings)
    (alone,) = from_image(model, open_rgb(MUG), "a mug", last)
    assert (pixels(alone.image) - pixels(three[2].image)).abs().max() <= 1


def test_brackets_are_weights_where_asked(model) -> None:
    sampling = Sampling(steps=4, seed=3, weighted_prompts=True, negative_prompt="(dull:1.1)")

    def made(prompt: str) -> torch.Tensor:
        (found,) = from_image(model, open_rgb(MUG), prompt, sampling)
        return pixels(found.image)

    plain = made("a red mug")
    assert (made("a (red:1.0) mug") - plain).abs().max() <= 1
    assert (made("a (red:1.9) mug") - plain).abs().max() > 1
    assert len(made("very " * 60 + "red mug")) == len(plain)  # more than the encoder takes at once


def test_skipped_steps_are_the_noisy_ones(model) -> None:
    """With all steps and x_T from pure noise, it is what `generate` makes."""
    from ldm.inference import make_sampler, seeded_noise

    sampling = Sampling(steps=5, scale=1.0, seed=9)
    conditioning = model.get_learned_conditioning(["a mug"])
    sampler = make_sampler(model, sampling)
    shape = (model.channels, model.image_size, model.image_size)
    common = {"S": 5, "batch_size": 1, "shape": shape, "conditioning": conditioning}
    _, kept = sampler.sample(**common, noise_source=seeded_noise([9]), log_every_t=1, verbose=False)
    # x_inter holds x_T, then x after each step.
    latents, _ = sampler.sample(**common, x_T=kept["x_inter"][2], skip=2, verbose=False)
    torch.testing.assert_close(latents, kept["x_inter"][-1])
    assert generate(model, "a mug", sampling)[0].seed == 9


@pytest.mark.parametrize(("strength", "samples"), [(0.0, 1), (1.1, 1), (0.5, 0)])
def test_values_out_of_range_are_refused(strength: float, samples: int) -> None:
    with pytest.raises(ValueError, match="must"):
        from_image(
            None, Image.new("RGB", (8, 8)), "*", Sampling(), samples=samples, strength=strength
        )


def test_the_command_writes_images_with_their_settings(untrained_miniature, tmp_path) -> None:
    line = ["--ckpt_path", untrained_miniature, "--init-img", MUG, "--prompt", "a mug"]
    line += ["--ddim_steps", 4, "--n_samples", 2, "--device", "cpu", "--outdir", tmp_path]
    assert img2img.main([str(word) for word in line]) == 0
    settings = read_settings(tmp_path / "samples" / "a-mug_43.png")
    assert (settings["strength"], settings["image"], settings["seed"]) == (0.75, "1.png", 43)
    assert (tmp_path / "a-mug.png").is_file()
    with pytest.raises(UserError, match=r"--strength must lie in \(0, 1\], got 1\.5"):
        img2img.main([str(word) for word in [*line, "--strength", 1.5]])
