"""Local edits and bipartite inversion: the background stays, the image comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from torch.testing import assert_close

from ldm.editing.blended import (
    background_error,
    edit,
    latent_mask_of,
    mask_schedule,
    masked_region,
    refined,
)
from ldm.editing.guided import from_image
from ldm.editing.images import (
    encode,
    fitting_size,
    mask_tensor,
    model_size,
    open_mask,
    psnr,
    resized,
)
from ldm.editing.inversion import invert_image, read_noise, reconstruction, regenerate, write_noise
from ldm.image_io import from_pil, open_rgb, to_pil
from ldm.inference import Sampling, load_model
from ldm.models.diffusion.sampler import make_steps, make_timesteps
from ldm.util import UserError

ROOT = Path(__file__).parents[2]
FEW = {"sampling": Sampling(steps=3, batch_size=2), "samples": 2}


@pytest.fixture(scope="module")
def model(untrained_miniature):
    config = OmegaConf.load(untrained_miniature / "config.yaml")
    return load_model(config, untrained_miniature / "model.safetensors")


@pytest.fixture(scope="module")
def original():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def mask():
    mask = Image.new("1", (64, 64))
    ImageDraw.Draw(mask).ellipse([13, 13, 50, 50], fill=1)
    return mask


class Brightness:
    """Likes bright images."""

    def image_features(self, images):
        light = torch.tensor([np.asarray(image).mean() / 255 for image in images])
        return torch.stack([light, 1 - light], dim=1)

    def text_features(self, texts):
        return torch.tensor([[1.0, 0.0]]).expand(len(texts), -1)


def outside(image, mask):
    return np.asarray(image)[~np.asarray(mask)]


def test_pasting_keeps_every_pixel_outside_the_mask_and_changes_those_inside(model, original, mask):
    for made in edit(model, original, mask, "a red star", **FEW):
        assert (outside(made.image, mask) == outside(original, mask)).all()
        assert made.settings["background_error"] == 0
        inside = np.asarray(mask)
        changed = np.asarray(made.image)[inside] != np.asarray(original)[inside]
        assert changed.mean() > 0.9


def test_an_image_depends_on_its_seed_alone(model, original, mask):
    two = edit(model, original, mask, "a red star", **FEW)
    (second,) = edit(model, original, mask, "a red star", Sampling(steps=3, seed=43), samples=1)
    assert [made.seed for made in two] == [42, 43]
    assert background_error(two[1].image, second.image, Image.new("1", (64, 64))) <= 1
    assert background_error(two[0].image, second.image, Image.new("1", (64, 64))) > 10


def test_the_text_encoder_is_told_the_size_of_the_given_image(model, monkeypatch):
    """SDXL's condition has the image's size; here it is not the model's own square."""
    told = []
    encode = model.get_learned_conditioning

    def spy(texts, size=None, **options):
        told.append(size)
        return encode(texts, **options)

    monkeypatch.setattr(model, "get_learned_conditioning", spy)
    wide, mask = Image.new("RGB", (64, 32)), Image.new("1", (64, 32), 1)
    edit(model, wide, mask, "a red star", **FEW)
    from_image(model, wide, "a red star", Sampling(steps=3))
    assert set(told) == {(32, 64)}


def test_the_latent_outside_the_mask_is_the_images_noised_to_each_step(
    model, original, mask, monkeypatch
):
    """Spec: before each guided step z ← m·z + (1−m)·q_sample(z_init, t)."""
    seen = []
    predict = model.apply_model
    noisy = type(model).q_sample
    kept = []

    def apply_model(x, t, cond):
        seen.append(x)
        return predict(x, t, cond)

    def q_sample(x_start, t, noise):
        kept.append(noisy(model, x_start, t, noise))
        return kept[-1]

    monkeypatch.setattr(model, "apply_model", apply_model)
    monkeypatch.setattr(model, "q_sample", q_sample)
    edit(model, original, mask, "a red star", Sampling(steps=4, scale=1.0), samples=2)
    background = (latent_mask_of(model, mask) == 0).expand_as(seen[0])
    assert len(seen) == len(kept) == 4
    for x, want in zip(seen, kept, strict=True):
        assert_close(x[background], want[background])
        assert (x[~background] - want[~background]).abs().mean() > 0.1
    assert not torch.equal(kept[0][0], kept[0][1])


def test_thin_masks_begin_wide_and_end_as_themselves():
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 1
    alphas = torch.linspace(0.999, 0.01, 1000).double().tolist()
    steps = make_steps(make_timesteps(12), alphas, 0.0)
    sides = [int(mask_schedule(mask, 2, 12)(step).sum() ** 0.5) for step in steps]
    assert sides == 4 * [5] + 4 * [3] + 4 * [1]
    assert all(torch.equal(mask_schedule(mask, 0, 12)(step), mask) for step in steps)


def test_a_tuned_decoder_keeps_the_background_better_and_leaves_the_model_alone(
    model, original, mask
):
    original = Image.new("RGB", original.size, (40, 90, 200))
    before = {k: v.clone() for k, v in model.first_stage_model.state_dict().items()}
    latent = encode(model, original)
    area = mask_tensor(mask, mask.size)
    target = from_pil(original)[None]
    plain = model.decode_first_stage(latent)
    tuned = refined(model, latent, original, area, steps=25, rate=1e-3)
    errors = [float(((p - target) ** 2 * (1 - area)).mean()) for p in (plain, tuned)]
    assert errors[1] < 0.7 * errors[0]
    assert not any(p.requires_grad for p in model.first_stage_model.parameters())
    assert_close(dict(model.first_stage_model.state_dict()), before, rtol=0, atol=0)


def test_each_background_is_what_it_says(model, original, mask):
    errors = {}
    for background in ("paste", "none"):
        how = {"samples": 1, "background": background}
        (made,) = edit(model, original, mask, "a red star", Sampling(steps=2), **how)
        errors[background] = made.settings["background_error"]
    assert errors["paste"] == 0
    assert errors["none"] > 20


def test_the_scorers_best_comes_first(model, original, mask):
    made = edit(
        model,
        original,
        mask,
        "a red star",
        Sampling(steps=2),
        samples=4,
        scorer=Brightness(),
    )
    light = [np.asarray(masked_region(e.image, mask)).mean() for e in made]
    assert light == sorted(light, reverse=True)
    assert [e.score for e in made] == sorted((e.score for e in made), reverse=True)


def test_a_masked_region_is_cut_out_and_the_rest_is_grey(original):
    mask = Image.new("1", (64, 64))
    mask.paste(1, (10, 20, 30, 25))
    mask.putpixel((10, 20), 0)
    region = masked_region(original, mask)
    assert region.size == (20, 5)
    assert region.getpixel((0, 0)) == (128, 128, 128)
    assert region.getpixel((1, 1)) == original.getpixel((11, 21))


@pytest.mark.parametrize(
    ("size", "side", "multiple", "want"),
    [
        ((256, 256), 256, 64, (256, 256)),
        ((64, 64), 64, 16, (64, 64)),
        ((128, 128), 64, 16, (64, 64)),
        ((4000, 3000), 256, 64, (256, 192)),
        ((30, 40), 256, 64, (192, 256)),
        ((5000, 100), 64, 16, (64, 16)),
    ],
)
def test_the_size_at_which_an_image_is_generated(size, side, multiple, want):
    assert fitting_size(size, side, multiple) == want


def test_an_image_that_is_not_square_is_edited_in_its_proportions(model, original):
    wide = original.resize((100, 52))
    size = model_size(model, wide.size)
    assert size == (64, 32)
    wide = resized(wide, size)
    mask = Image.new("1", size)
    mask.paste(1, (16, 8, 40, 24))
    (made,) = edit(model, wide, mask, "a red star", Sampling(steps=2), samples=1)
    assert made.image.size == size
    assert made.settings["background_error"] == 0


def test_masks_that_cannot_serve_are_named(model, tmp_path):
    def mask_file(value, size=(64, 64)):
        Image.new("L", size, value).save(tmp_path / "mask.png")
        return tmp_path / "mask.png"

    with pytest.raises(UserError, match="is 32 x 64, but the image is 64 x 64: give a mask of"):
        open_mask(mask_file(255, (32, 64)), (64, 64))
    with pytest.raises(UserError, match=r"is empty: make white \(at least 128 of 255\)"):
        open_mask(mask_file(127), (64, 64))
    with pytest.raises(UserError, match="does not exist"):
        open_mask(tmp_path / "absent.png", (64, 64))
    assert open_mask(mask_file(128), (64, 64)).getbbox() == (0, 0, 64, 64)
    line = Image.new("1", (64, 64))
    line.paste(1, (0, 0, 64, 2))
    with pytest.raises(UserError, match="covers no point of the model's latent, which are 8 pix"):
        latent_mask_of(model, line)


def test_bad_arguments_are_named(model, original):
    with pytest.raises(ValueError, match="mask must have the image's size"):
        edit(model, original, Image.new("1", (8, 8)), "a star")
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        edit(model, original, original.convert("1"), "a star", samples=0)
    with pytest.raises(ValueError, match="dilate must be at least 0, got -1"):
        edit(model, original, original.convert("1"), "a star", dilate=-1)
    with pytest.raises(ValueError, match="background must be one of paste, decoder, none, got 'x'"):
        edit(model, original, original.convert("1"), "a star", background="x")


def test_psnr_is_that_of_a_known_error():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    assert psnr(grey, grey) == float("inf")
    assert psnr(grey, Image.new("RGB", (4, 4), (110, 110, 110))) == pytest.approx(28.13, abs=0.01)


def test_the_shipped_miniature_generates_an_image_again_from_its_noise():
    """At a tenth of the paper's steps; refinements then make up for the long steps."""
    folder = ROOT / "models/miniature"
    model = load_model(folder / "config.yaml", folder / "model.safetensors")
    mug = resized(open_rgb(ROOT / "examples/concepts/red-mug/1.png"), (64, 64))
    best = reconstruction(model, mug)
    levels = []
    for refinements in (0, 2):
        noise = invert_image(
            model,
            mug,
            "a photo of a red mug",
            Sampling(steps=25, scale=1.0),
            refinements=refinements,
        )
        levels.append(psnr(regenerate(model, noise, [noise.prompt])[0], best))
    assert levels[1] > max(30, levels[0] + 5)
    assert levels[0] > 20


def test_prompts_share_one_noise(model, original):
    noise = invert_image(model, original, "a star", Sampling(steps=4, scale=1.0))
    both = regenerate(model, noise, ["a star", "a red mug"], 3.0)
    alone = regenerate(model, noise, ["a red mug"], 3.0)
    assert psnr(both[1], alone[0]) > 40
    assert psnr(both[0], both[1]) < 40


def test_noise_goes_through_a_file(model, original, tmp_path):
    noise = invert_image(model, original, "a star", Sampling(steps=3, scale=2.0))
    write_noise(tmp_path / "noise.safetensors", noise)
    read = read_noise(tmp_path / "noise.safetensors")
    assert torch.equal(read.noise, noise.noise)
    assert (read.prompt, read.steps, read.scale, read.refinements) == ("a star", 3, 2.0, 0)


def test_files_that_hold_no_noise_are_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(UserError, match=r"does not exist: make it with scripts/invert\.py"):
        read_noise(tmp_path / "absent")
    save_file({"noise": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(UserError, match="holds no inverted noise"):
        read_noise(tmp_path / "other")
    (tmp_path / "damaged").write_bytes(b"no")
    with pytest.raises(UserError, match="is damaged"):
        read_noise(tmp_path / "damaged")


def test_images_and_masks_keep_their_kind_when_resized(original):
    assert to_pil(from_pil(original)).tobytes() == original.tobytes()
    mask = Image.new("1", (100, 50))
    mask.paste(1, (50, 0, 100, 50))
    assert mask_tensor(mask, (4, 2))[0, 0].tolist() == [[0, 0, 1, 1]] * 2
    assert resized(mask, (4, 2)).mode == "1"
