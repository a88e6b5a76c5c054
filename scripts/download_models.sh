#!/usr/bin/env bash
# Download the published weights and vocabularies once. Afterwards everything works offline.
# `scripts/download_models.sh --help` lists the parts.
set -euo pipefail

# Environment variables may name mirrors: MODEL_URL=https://... scripts/download_models.sh
MODEL_URL=${MODEL_URL:-https://ommer-lab.com/files/latent-diffusion/nitro/txt2img-f8-large/model.ckpt}
# The tensors take 6,151,841,556 bytes: a shorter file is not complete.
MODEL_MIN_BYTES=${MODEL_MIN_BYTES:-6151841556}
# The same weights, used if MODEL_URL fails.
MODEL_HUB=${MODEL_HUB:-CompVis/ldm-text2im-large-256}
VOCAB_URL=${VOCAB_URL:-https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt}
VOCAB_MD5=${VOCAB_MD5:-64800d5d8528ce344256daf115d4965e}
CLIP_URL=${CLIP_URL:-https://huggingface.co/openai/clip-vit-large-patch14/resolve/main}

usage() {
    cat <<'TEXT'
usage: scripts/download_models.sh [--root DIR] [vocabulary] [model] [clip]

  vocabulary   BERT's WordPiece vocabulary, 0.2 MB; its MD5 is verified
  model        the 1.4B latent diffusion model, 6.2 GB; an interrupted download continues. If its
               link fails, the same weights come from the Hugging Face Hub and are converted
  clip         CLIP's vocabulary, 1.5 MB, for Stable Diffusion checkpoints

Without a name: vocabulary and model. Files go to DIR/models/ldm. DIR is the project's folder unless
--root names another.

No checksum of model.ckpt is published. The names and shapes of its tensors are verified. Its SHA-256
is written beside it. Later runs compare the file with it.
TEXT
}

fail() {
    echo "error: $*" >&2
    exit 1
}

digest() { # digest md5|sha256 FILE
    if command -v "${1}sum" >/dev/null; then
        "${1}sum" "$2" | cut -d' ' -f1
    elif [ "$1" = md5 ]; then
        md5 -q "$2"
    else
        shasum -a 256 "$2" | cut -d' ' -f1
    fi
}

fetch() { # fetch URL FILE: download to FILE.part; continue an interrupted download
    mkdir -p "$(dirname "$2")" || fail "cannot write to $(dirname "$2")"
    echo "fetching $1"
    if command -v curl >/dev/null; then
        curl --fail --location --retry 3 --continue-at - --output "$2.part" "$1" ||
            fail "download of $1 stopped; run this again to continue it"
    elif command -v wget >/dev/null; then
        wget --tries=3 --continue --output-document="$2.part" "$1" ||
            fail "download of $1 stopped; run this again to continue it"
    else
        fail "neither curl nor wget is installed"
    fi
}

# For files without a published checksum: record that of the first download, compare later ones.
verify_recorded() { # verify_recorded FILE
    local record="$1.sha256" sum
    sum=$(digest sha256 "$1")
    if [ -f "$record" ]; then
        [ "$(cut -d' ' -f1 "$record")" = "$sum" ] ||
            fail "$1 does not have the SHA-256 in $record: delete both files and download again"
        echo "$1: SHA-256 $sum, as recorded"
    else
        echo "$sum  $(basename "$1")" >"$record"
        echo "$1: SHA-256 $sum, recorded beside it (none was published to compare with)"
    fi
}

vocabulary() {
    local file="$root/models/ldm/text2img-large/bert-base-uncased/vocab.txt"
    if [ ! -f "$file" ]; then
        fetch "$VOCAB_URL" "$file"
        if [ "$(digest md5 "$file.part")" != "$VOCAB_MD5" ]; then
            rm -f "$file.part"
            fail "the vocabulary from $VOCAB_URL does not have the MD5 $VOCAB_MD5"
        fi
        mv "$file.part" "$file"
    fi
    [ "$(digest md5 "$file")" = "$VOCAB_MD5" ] ||
        fail "$file does not have the MD5 $VOCAB_MD5: delete it and run this again"
    echo "$file: MD5 $VOCAB_MD5"
}

clip() {
    local folder="$root/models/ldm/stable-diffusion-v1/clip-vit-large-patch14" name
    for name in vocab.json merges.txt tokenizer_config.json; do
        if [ ! -f "$folder/$name" ]; then
            fetch "$CLIP_URL/$name" "$folder/$name"
            mv "$folder/$name.part" "$folder/$name"
        fi
        verify_recorded "$folder/$name"
    done
}

model() {
    local file="$root/models/ldm/text2img-large/model.ckpt"
    if [ ! -f "$file" ]; then
        from_first_link "$file" || from_hub "$file"
    fi
    check_contents "$file"
    verify_recorded "$file"
}

bytes() { # bytes FILE: its size, 0 if it is not there
    if [ -f "$1" ]; then wc -c <"$1"; else echo 0; fi
}

from_first_link() { # from_first_link FILE: returns 1 if the link gives nothing; fails if interrupted
    local size before
    before=$(bytes "$1.part")
    if ! (fetch "$MODEL_URL" "$1"); then
        [ "$(bytes "$1.part")" -le "$before" ] || exit 1
        [ -s "$1.part" ] || rm -f "$1.part"
        return 1
    fi
    size=$(wc -c <"$1.part")
    if [ "$(head -c 2 "$1.part")" != PK ]; then
        rm -f "$1.part"
        echo "$MODEL_URL gave a file of $size bytes that is not a checkpoint" >&2
        return 1
    fi
    [ "$size" -ge "$MODEL_MIN_BYTES" ] ||
        fail "$1.part has $size bytes, expected at least $MODEL_MIN_BYTES: run this again to continue"
    mv "$1.part" "$1"
}

from_hub() { # from_hub FILE: the same weights from the Hugging Face Hub, with the names of model.ckpt
    echo "the first link fails: fetching $MODEL_HUB from the Hugging Face Hub"
    installed || fail "the conversion needs the project's Python environment: run make env first"
    "$python" "$project/scripts/convert_model.py" "$MODEL_HUB" "$1" || exit 1
    rm -f "$1.part" # from the first link
}

installed() { # whether the project's Python is there
    "$python" -c 'import ldm.checkpoint.convert' 2>/dev/null
}

check_contents() { # check_contents FILE: check which model it is, and its names and shapes
    if ! installed; then
        echo "$1: contents not checked, because the project is not installed (make env)"
        return
    fi
    "$python" - "$1" "$MODEL_NAMES" <<'PYTHON' || exit 1
import gzip
import sys

from ldm.checkpoint.loading import read_state_dict
from ldm.checkpoint.names import describe
from ldm.util import UserError, cli_main


def check() -> None:
    path, listing = sys.argv[1:]
    state = read_state_dict(path)
    found = describe(state)
    if not found.startswith("latent diffusion with a BERT text encoder, context 1280"):
        raise UserError(f"{path}: not the 1.4B model but {found}; delete it")
    with gzip.open(listing, "rt") as file:
        rows = [line.split("\t")[:2] for line in file.read().splitlines()[1:]]
    shapes = {name: ",".join(map(str, value.shape)) for name, value in state.items()}
    wrong = [name for name, shape in rows if shapes.get(name) != shape]
    if wrong:
        raise UserError(f"{path}: {len(wrong)} of {len(rows)} entries are missing or have another "
                        f"shape, such as {wrong[0]}; delete it")
    print(f"{path}: {found}; {len(rows)} names and shapes as published")


cli_main(check)
PYTHON
}

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root=$project
python=${PYTHON:-$project/.venv/bin/python}
MODEL_NAMES=${MODEL_NAMES:-$project/tests/data/txt2img-1p4B.tsv.gz}
wanted=()
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --root)
        [ $# -ge 2 ] || fail "--root takes a folder"
        root=$2
        shift
        ;;
    vocabulary | model | clip) wanted+=("$1") ;;
    *) fail "unknown argument $1 (see --help)" ;;
    esac
    shift
done
if [ ${#wanted[@]} -eq 0 ]; then
    wanted=(vocabulary model)
fi
for part in "${wanted[@]}"; do
    "$part"
done
