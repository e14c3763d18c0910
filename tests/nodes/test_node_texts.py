"""Help pages and translations: every node has them, with an image, and nothing in them is out of step."""

import ast
import json
import re

import pytest
from PIL import Image

from tests.host.hosts import ROOT

LANGUAGES = ("en", "zh", "ja", "ko")
TRANSLATIONS = LANGUAGES[1:]
LETTERS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]"}
DOCS = ROOT / "web" / "docs"
#: What no translation changes: file names and paths, words with a digit, values of widgets, LoRA, CLIP, GGUF …
UNTRANSLATABLE = re.compile(
    r"\w+(?:[./_]\w+)+|\.safetensors|\w*\d\w*|\b(?:interpolate|mean|sum|pad|stretch)\b"
    r"|\b(?:weights|forward|coefficients|query)(?=:)|\w*[A-Z]{2,}\w*",
    re.ASCII,
)


def node_ids():
    """Return the ids that the pack registers, without importing it."""
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text())
    (table,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "NODE_CLASS_MAPPINGS"
    ]
    return [key.value for key in table.keys]


def load_locale(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def sentences(table):
    """Return description and tooltips by their place: (node id, …, field) → text."""
    found = {}
    for node_id, definition in table.items():
        found[node_id, "description"] = definition["description"]
        for group in ("inputs", "outputs"):
            for name, entry in definition[group].items():
                found[node_id, group, name, "tooltip"] = entry.get("tooltip", "")
    return found


def pairs_of_sentences(language):
    translated = sentences(load_locale(language))
    return [(place, english, translated[place]) for place, english in sentences(load_locale("en")).items()]


@pytest.mark.parametrize("node_id", node_ids())
def test_a_help_page_has_an_image_and_names_every_input(node_id):
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    definition = load_locale("en")[node_id]
    assert page.startswith(f"# {definition['display_name']}\n")
    (file_name,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    with Image.open(DOCS / file_name) as image:
        assert image.width >= 200 and len(image.convert("RGB").getcolors(100_000)) > 16
    assert (DOCS / file_name).stat().st_size < 40_000
    for name in [*definition["inputs"], *(output["name"] for output in definition["outputs"].values())]:
        assert f"**{name}**" in page, name


def test_help_pages_belong_to_nodes():
    assert {path.stem for path in DOCS.iterdir()} == set(node_ids())


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_every_node_input_and_output_and_no_other(language):
    table, english = load_locale(language), load_locale("en")
    assert list(table) == node_ids()
    for node_id, definition in table.items():
        assert definition["display_name"] and definition["description"]
        for group in ("inputs", "outputs"):
            assert list(definition[group]) == list(english[node_id][group]), node_id
            for entry in definition[group].values():
                assert list(entry) == ["name", "tooltip"] and all(text.strip() for text in entry.values()), node_id


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_is_in_its_language(language):
    for place, english, text in pairs_of_sentences(language):
        assert text != english and re.search(LETTERS[language], text), place


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_keeps_numbers_file_names_options_and_product_names(language):
    for place, english, text in pairs_of_sentences(language):
        missing = [term for term in UNTRANSLATABLE.findall(english) if term not in text]
        assert not missing, place


@pytest.mark.parametrize("language", LANGUAGES)
def test_signs_that_the_frontend_reads_as_syntax_are_escaped(language):
    def texts(value):
        return [text for part in value.values() for text in texts(part)] if isinstance(value, dict) else [value]

    for text in texts(load_locale(language)):
        assert not re.search(r"[{}|@]", re.sub(r"\{'[{}|@]'\}", "", text)), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_tooltips_need_no_escapes(language):
    """The frontend compiles names and descriptions but shows tooltips raw, where an escape would be seen."""
    for (*_, field), text in sentences(load_locale(language)).items():
        assert field != "tooltip" or not re.search(r"[{}|@]", text), text
