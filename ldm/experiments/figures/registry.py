"""Every figure with its prompts: the paper's own, and their like in the miniature's vocabulary.

`*` is the learned word, `@` a second one. The paper names few of its concepts: the others are
called `object-1` and so on here, and `--rename object-1=cat` puts one's own in their place.
"""

from __future__ import annotations

from ldm.experiments.figures.record import Figure, Line

SCENES = (
    "A photo of a *",
    "A photo of a * on the beach",
    "A photo of a * on the moon",
    "A painting of a * in the forest",
)
PAPER_SCENES = (
    "A photo of *",
    "A photo of * on the beach",
    "A photo of * on the moon",
    "Elmo holding a *",
)


def _each(concepts: tuple[str, ...], prompts: tuple[str, ...]) -> tuple[Line, ...]:
    return tuple(Line((concept,), prompts) for concept in concepts)


_FIGURE_1 = Figure(
    name="1",
    title="Text-guided images of learned words",
    renderer="curated",
    paper=(
        Line(
            ("statue",),
            (
                "An oil painting of *",
                "App icon of *",
                "Elmo sitting in the same pose as *",
                "Crochet *",
            ),
        ),
        Line(
            ("cat",),
            (
                "Painting of two * fishing on a boat",
                "A * backpack",
                "Banksy art of *",
                "A * themed lunchbox",
            ),
        ),
    ),
    miniature=(
        Line(
            ("teal-star",),
            (
                "A painting of a *",
                "Pixel art of a *",
                "A neon sign of a * in the city",
                "A photo of a * on the moon",
            ),
        ),
        Line(
            ("pink-heart",),
            (
                "A sketch of a *",
                "A painting of a * in the forest",
                "A photo of a * on the beach",
                "Pixel art of a * at sunset",
            ),
        ),
    ),
)

_FIGURE_3 = Figure(
    name="3",
    title="Variations: the word against human captions",
    renderer="variations",
    paper=_each(("object-1", "object-2", "object-3"), ("A photo of *",)),
    miniature=_each(("teal-star", "red-mug", "orange-fish"), ("A photo of a *",)),
)

_FIGURE_4 = Figure(
    name="4",
    title="Text-guided images",
    renderer="curated",
    paper=(
        Line(("object-1",), ("* sports car", "* made of lego", "* onesie", "da Vinci sketch of *")),
        Line(
            ("object-2",),
            (
                "Watercolor painting of * on a branch",
                "A house in the style of *",
                "Grainy photo of * in angry birds",
                "* made of chocolate",
            ),
        ),
        Line(
            ("object-3",),
            (
                "A mosaic depicting *",
                "Death metal album cover featuring *",
                "Masterful oil painting of * hanging on the wall",
                "An artist drawing a *",
            ),
        ),
        Line(
            ("object-4",),
            (
                "A photo of * full of cashew nuts",
                "A mouse using * as a boat",
                "A photo of a * mask",
                "Ramen soup served in *",
            ),
        ),
        Line(("object-5",), ("A carpet with * embroidery", "A * stamp", "* fedora", "Felt *")),
    ),
    miniature=(
        Line(
            ("red-mug",),
            (
                "A photo of a * on the beach",
                "A painting of a * in the forest",
                "A sketch of a *",
                "Pixel art of a * on the moon",
            ),
        ),
        Line(
            ("orange-fish",),
            (
                "A photo of a * at sunset",
                "A neon sign of a * in the city",
                "A painting of a * in the sea",
                "A photo of a * on the moon",
            ),
        ),
        Line(
            ("yellow-crescent",),
            (
                "A photo of a * in the forest",
                "Pixel art of a * in the city",
                "A sketch of a * on the beach",
                "A painting of a * at sunset",
            ),
        ),
        Line(
            ("cyan-ring",),
            (
                "A photo of a * in the sea",
                "A neon sign of a *",
                "A painting of a * on the moon",
                "Pixel art of a * on the beach",
            ),
        ),
        Line(
            ("white-cross",),
            (
                "A photo of a * on the moon",
                "A painting of a * in the sea",
                "Pixel art of a *",
                "A sketch of a * in the forest",
            ),
        ),
    ),
)

_FIGURE_5 = Figure(
    name="5",
    title="Comparison with what needs no learning",
    renderer="comparison",
    paper=_each(("object-1", "object-2"), PAPER_SCENES),
    miniature=_each(("teal-star", "orange-fish"), SCENES),
)

_FIGURE_6 = Figure(
    name="6",
    title="A learned style",
    renderer="curated",
    paper=_each(
        ("style-1", "style-2"),
        (
            "The streets of Paris in the style of *",
            "Adorable corgi in the style of *",
            "Painting of a black hole in the style of *",
            "Times square in the style of *",
        ),
    ),
    miniature=_each(
        ("chalk", "arcade"),
        (
            "a star on the beach in the style of *",
            "a fish in the sea in the style of *",
            "a flower in the forest in the style of *",
            "a mug in the city in the style of *",
        ),
    ),
)

_FIGURE_7 = Figure(
    name="7",
    title="Two words learned apart, in one prompt",
    renderer="curated",
    paper=(
        Line(("object-1", "style-1"), ("Photo of *", "Photo of * in the style of @")),
        Line(("object-2", "style-1"), ("Photo of *", "Photo of * in the style of @")),
        Line(("object-1", "object-2"), ("Photo of *", "A photo of * next to @")),
    ),
    miniature=(
        *(
            Line(
                (concept, "chalk"),
                (
                    "A photo of a *",
                    "A photo of a * in the style of @",
                    "A photo of a * on the beach in the style of @",
                    "A * on the moon in the style of @",
                ),
            )
            for concept in ("teal-star", "yellow-crescent")
        ),
        Line(
            ("teal-star", "pink-heart"),
            (
                "A photo of a *",
                "A photo of a @",
                "A photo of a * with a @",
                "A photo of a * with a @ on the beach",
            ),
            "teal-star + pink-heart (images of this world hold one thing: the second is lost)",
        ),
    ),
)

_FIGURE_8 = Figure(
    name="8",
    title="A population by a known word, and by one learned from a varied set",
    renderer="bias",
    paper=(Line(("doctor",), ("A stock photo of a doctor", "A photo of *")),),
    miniature=(Line(("any-star",), ("A picture of a star", "A picture of a *")),),
    needs=("words",),
    layout={
        "paper": {"woman": "a photo of a woman", "man": "a photo of a man"},
        "paper_group": ("women", ("woman",)),
        "miniature": "medium",
        "miniature_answers": (
            "photo",
            "painting",
            "sketch",
            "pixel",
            "neon",
        ),  # what it can generate
        "miniature_group": ("sketches", ("sketch",)),
    },
)

_FIGURE_13 = Figure(
    name="13",
    title="More edits",
    renderer="curated",
    paper=_each(
        ("object-1", "object-2", "object-3", "object-4"),
        ("A * stamp", "Felt *", "* made of lego", "A mosaic depicting *"),
    ),
    miniature=_each(
        ("teal-star", "pink-heart", "cyan-ring", "red-mug"),
        (
            "A close-up photo of a * in the meadow",
            "A painting of a * in the kitchen",
            "A bright photo of a * in the snow",
            "A neon sign of a * on the moon",
        ),
    ),
)

_FIGURE_14 = Figure(
    name="14",
    title='Uncurated images of "A photo of S*"',
    renderer="uncurated",
    paper=_each(("object-1", "object-2", "object-3", "object-4", "object-5"), ("A photo of *",)),
    miniature=_each(
        (
            "teal-star",
            "red-mug",
            "orange-fish",
            "pink-heart",
            "yellow-crescent",
            "cyan-ring",
            "white-cross",
        ),
        ("A photo of a *",),
    ),
)

_GALLERY = (
    "A photo of a * on the beach",
    "A painting of a * in the forest",
    "A sketch of a *",
    "Pixel art of a * at sunset",
)
_PAPER_GALLERY = (
    "A photo of * on the beach",
    "A photo of * on the moon",
    "An oil painting of *",
    "Elmo holding a *",
)


def _gallery(name: str, paper: tuple[str, ...], miniature: tuple[str, ...]) -> Figure:
    return Figure(
        name=name,
        title="Uncurated images of several prompts",
        renderer="prompts",
        paper=_each(paper, _PAPER_GALLERY),
        miniature=_each(miniature, _GALLERY),
    )


_FIGURE_9 = Figure(
    name="9",
    title="A learned word edited into an image",
    renderer="local_edit",
    paper=_each(("object-1",), ("An oil painting of *", "A black and white photo of *", "A *")),
    miniature=_each(
        ("teal-star", "cyan-ring"), ("A photo of a *", "A painting of a *", "A sketch of a *")
    ),
    needs=("words", "scene"),
)

_FIGURE_11 = Figure(
    name="11",
    title="Bipartite inversion and pivotal tuning over guidance",
    renderer="inversion",
    paper=_each(("object-1",), PAPER_SCENES[:3]),
    miniature=_each(("teal-star",), SCENES[:3]),
    needs=("words", "concepts", "pivotal"),
)

FIGURES: tuple[Figure, ...] = (
    _FIGURE_1,
    _FIGURE_3,
    _FIGURE_4,
    _FIGURE_5,
    _FIGURE_6,
    _FIGURE_7,
    _FIGURE_8,
    _FIGURE_9,
    Figure(
        name="10a",
        title="Editability against reconstruction",
        renderer="trade_off",
        needs=("table",),
    ),
    Figure(name="10b", title="The user study", renderer="user_study", needs=("answers",)),
    _FIGURE_11,
    Figure(name="12", title="The training set's size", renderer="set_size", needs=("table",)),
    _FIGURE_13,
    _FIGURE_14,
    _gallery("15", ("object-1", "object-2"), ("teal-star", "orange-fish")),
    _gallery("16", ("object-3", "object-4"), ("pink-heart", "cyan-ring")),
)
