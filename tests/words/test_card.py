"""A folder for the Hub: the word comes back, and its metadata are what the Hub expects."""

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from ldm.cli.convert_embedding import main
from ldm.util import UserError
from ldm.words.card import write_hub_folder
from ldm.words.files import WordFile, read_words, write_words

WORD = WordFile({"<cat: toy>": torch.randn(2, 768)}, {"seed": "23", "step": "500"})
BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def block(folder):
    _, text, rest = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(text), rest


def test_a_folder_with_everything(tmp_path):
    image = tmp_path / "sample.PNG"
    Image.new("RGB", (4, 4)).save(image)
    write_hub_folder(tmp_path / "hub", WORD, "cc-by-4.0", BASE, [image])
    assert_close(read_words(tmp_path / "hub").words, WORD.words)
    assert list(load_file(tmp_path / "hub" / "learned_embeds.safetensors")) == ["<cat: toy>"]
    assert (tmp_path / "hub" / "token_identifier.txt").read_text() == "<cat: toy>"
    assert (tmp_path / "hub/concept_images/0.png").read_bytes() == image.read_bytes()
    facts, text = block(tmp_path / "hub")
    assert facts["license"] == "cc-by-4.0"
    assert facts["base_model"] == BASE
    assert facts["instance_prompt"] == "<cat: toy>"
    assert "textual_inversion" in facts["tags"]
    for part in ("2 vectors of width 768", "seed: 23", "steps: 500", "concept_images/0.png", BASE):
        assert part in text


def test_a_word_of_sdxl_has_two_files(tmp_path):
    second = {"<cat>": torch.randn(1, 1280)}
    file = WordFile({"<cat>": torch.randn(1, 768)}, {"encoder_family": "sdxl"}, second=second)
    write_hub_folder(tmp_path, file, "mit")
    found = read_words(tmp_path)
    assert_close((found.words, found.second), (file.words, second))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license_name": "my own\nlicense"}, "no identifier of the Hub"),
        ({"base_model": "model"}, "OWNER/NAME"),
        ({"images": ["absent.png"]}, "absent.png"),
        ({"images": ["README.txt"]}, "README.txt"),
        ({"file": WordFile({n: torch.ones(1, 4) for n in "ab"})}, "one word"),
    ],
)
def test_mistakes_write_nothing(tmp_path, options, message):
    (tmp_path / "README.txt").write_text("x")
    options = {"file": WORD, "license_name": "mit", **options}
    options["images"] = [tmp_path / name for name in options.get("images", ())]
    with pytest.raises(UserError, match=message):
        write_hub_folder(tmp_path / "hub", **options)
    assert not (tmp_path / "hub").exists()
    options = {**options, "license_name": "mit", "file": WORD, "base_model": None, "images": ()}
    with pytest.raises(UserError, match="has content"):
        write_hub_folder(tmp_path, **options)


def test_the_command(tmp_path):
    write_words(tmp_path / "cat.safetensors", {"*": torch.ones(1, 768)})
    arguments = [str(tmp_path / "cat.safetensors"), str(tmp_path / "hub")]
    options = ["--placeholder", "<cat>", "--hub_license", "mit", "--base_model", BASE]
    assert main([*arguments, *options]) == 0
    assert block(tmp_path / "hub")[0]["instance_prompt"] == "<cat>"
    assert_close(read_words(tmp_path / "hub").words, {"<cat>": torch.ones(1, 768)})
    with pytest.raises(UserError, match="add --hub_license"):
        main([*arguments, "--base_model", BASE])
