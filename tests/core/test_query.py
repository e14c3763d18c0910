"""Query embeddings: golden numbers of the reference run, the fixed crops, batches, refusals."""

import json
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lorweb_core.encoder import load_image_encoder
from lorweb_core.errors import ImageError, SettingsError, ShapeError
from lorweb_core.query import embed_analogy, embed_once, images_to_embed, join_embeddings
from lorweb_core.settings import QUERY_MODES, RouterSettings
from tests.images import GOLDEN, golden_tensor, noise, write_tiny_clip

RECORDED = load_file(GOLDEN / "query.safetensors")
CASES = json.loads((GOLDEN / "query.json").read_text())["cases"]
SEPARATE_MODES = ("cat-aa'b", "ca'-ca", "ca'-ca+cb")
GRID_MODES = ("aa'bb'", "caa'bb'", "caa'b", "caa'")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The golden CLIP vision tower."""
    return load_image_encoder(write_tiny_clip(tmp_path_factory.mktemp("models") / "clip"))


def golden_analogy(index):
    return tuple(golden_tensor(f"images/q{index}_{name}.png") for name in ("a", "ap", "b"))


def assert_close(query, expected):
    """1e-6 of the largest value: the golden float32 numbers are themselves 1.3e-6 off from a float64 run."""
    expected = expected.reshape(query.shape)
    assert (query - expected).abs().max() <= 1e-6 * max(1, expected.abs().max())


def golden_name(case):
    return f"{case['grid'][7:9]}.{case['query_mode']}"


@pytest.mark.parametrize("is_fitted", [False, True])
@pytest.mark.parametrize("case", CASES, ids=golden_name)
def test_reference_crops_equal_the_reference_run_on_every_grid(encoder, case, is_fitted):
    query = embed_analogy(
        RouterSettings(query_mode=case["query_mode"]),
        encoder.embed,
        *golden_analogy(int(case["grid"][8])),
        reference_crops=True,
        preprocessing=encoder.preprocessing if is_fitted else None,
    )
    assert_close(query, RECORDED[f"{golden_name(case)}.pil"])


@pytest.mark.parametrize("mode", QUERY_MODES)
def test_on_square_images_the_fixed_query_equals_the_reference(encoder, mode):
    query = embed_analogy(RouterSettings(query_mode=mode), encoder.embed, *golden_analogy(0))
    assert_close(query, RECORDED[f"q0.{mode}.pil"])
    assert_close(query, RECORDED[f"q0.{mode}.tensor"])


@pytest.mark.parametrize("index", range(3))
def test_the_fixed_query_joins_the_embeddings_of_the_images_themselves(encoder, index):
    a, a_prime, b = (RECORDED[f"q{index}.embed.{name}"] for name in ("a", "ap", "b"))
    expected = {
        "cat-aa'b": torch.cat([a, a_prime, b], dim=1),
        "ca'-ca": a_prime - a,
        "ca'-ca+cb": a_prime - a + b,
        "aa'bb'": RECORDED[f"q{index}.embed.grid"],
        "caa'bb'": RECORDED[f"q{index}.embed.grid"],
    }
    for mode, query in expected.items():
        fixed = embed_analogy(RouterSettings(query_mode=mode), encoder.embed, *golden_analogy(index))
        assert (fixed - query).abs().max() <= 3e-6 * query.abs().max()


@pytest.mark.parametrize("index", [1, 2])
def test_on_other_images_the_reference_embeds_wrong_crops(encoder, index):
    fixed, reference = (
        embed_analogy(RouterSettings(), encoder.embed, *golden_analogy(index), reference_crops=crops)
        for crops in (False, True)
    )
    recorded = next(c for c in CASES if c["grid"] == f"images/q{index}_grid.png" and c["query_mode"] == "cat-aa'b")
    assert (fixed - reference).abs().max().item() == pytest.approx(recorded["max_abs_pil_vs_true_quadrants"], rel=1e-4)


@pytest.mark.parametrize("index", range(3))
def test_grid_modes_cut_at_the_middle_of_both_axes(index):
    analogy, grid = golden_analogy(index), golden_tensor(f"images/q{index}_grid.png")
    height, width = grid.shape[1] // 2, grid.shape[2] // 2
    assert torch.equal(images_to_embed("aa'bb'", *analogy)[0], grid)
    assert torch.equal(images_to_embed("caa'", *analogy)[0], grid[:, :height])
    masked = grid.clone()
    masked[:, height:, width:] = 0
    assert torch.equal(images_to_embed("caa'b", *analogy)[0], masked)


sides = st.integers(2, 60)


@given(size=st.tuples(sides, sides), other=st.tuples(sides, sides), mode=st.sampled_from(SEPARATE_MODES))
@settings(max_examples=40, deadline=None)
def test_images_of_any_sizes_are_handed_to_the_encoder_untouched(size, other, mode):
    analogy = noise(*size), noise(*other), noise(*size, seed=1)
    images = images_to_embed(mode, *analogy)
    assert len(images) == (2 if mode == "ca'-ca" else 3)
    assert all(torch.equal(image, given) for image, given in zip(images, analogy, strict=False))


@given(size=st.tuples(sides, sides), mode=st.sampled_from(list(QUERY_MODES)))
@example(size=(20, 40), mode="cat-aa'b")
@settings(max_examples=60, deadline=None)
def test_reference_crops_give_images_or_say_why_not(size, mode):
    analogy = [noise(*size, seed=seed) for seed in range(3)]
    is_wide = size[1] >= 2 * size[0] and mode in ("cat-aa'b", "ca'-ca+cb")
    try:
        images = images_to_embed(mode, *analogy, reference_crops=True)
    except ImageError as error:
        assert size[1] >= 2 * size[0] * 0.98 and mode in ("cat-aa'b", "ca'-ca+cb")
        grid = f"grid of {2 * size[1]}×{2 * size[0]} px"
        assert re.search(f"less than twice as wide as high.*{grid}.*Switch reference_crops off", str(error))
    else:
        assert not is_wide and all(min(batch.shape) >= 1 for batch in images)


def test_bad_images_are_refused_by_name():
    good = noise(8, 8)
    with pytest.raises(ImageError, match="image_a_prime has 2 channels"):
        images_to_embed("aa'bb'", good, noise(8, 8, channels=2), good)


@pytest.mark.parametrize("mode", QUERY_MODES)
@pytest.mark.parametrize("reference_crops", [False, True])
@pytest.mark.parametrize("pairs", [1, 3])
def test_one_pair_for_all_b_or_one_per_b_gives_the_queries_of_single_calls(encoder, mode, reference_crops, pairs):
    a, a_prime = noise(40, 48, batch=pairs), noise(44, 48, batch=pairs, seed=1)
    b = noise(48, 40, batch=3, seed=2)
    chosen = RouterSettings(query_mode=mode)
    together = embed_analogy(chosen, encoder.embed, a, a_prime, b, reference_crops=reference_crops)
    is_independent_of_b = mode == "ca'-ca" and not reference_crops and pairs == 1
    assert together.shape == (1 if is_independent_of_b else 3, chosen.embeddings_per_query * 12)
    for index in range(len(together)):
        triplet = a[index % pairs][None], a_prime[index % pairs][None], b[index : index + 1]
        single = embed_analogy(chosen, encoder.embed, *triplet, reference_crops=reference_crops)
        assert (together[index] - single).abs().max() < 5e-6


def test_a_pair_given_once_is_encoded_once_and_all_images_in_one_batch(encoder):
    batches = []

    def encode(images):
        batches.append(tuple(images.shape))
        return encoder.embed(images)

    a, a_prime, b = noise(40, 50), noise(30, 50), noise(60, 44, batch=4)
    fitted = embed_analogy(RouterSettings(), encode, a, a_prime, b, preprocessing=encoder.preprocessing)
    assert batches == [(6, 32, 32, 3)]
    apart = embed_analogy(RouterSettings(), encode, a, a_prime, b)
    assert batches[1:] == [(1, 40, 50, 3), (1, 30, 50, 3), (4, 60, 44, 3)]
    assert (fitted - apart).abs().max() < 5e-6
    embed_analogy(RouterSettings(), encode, noise(40, 50), noise(40, 50), noise(40, 50))
    assert batches[4:] == [(3, 40, 50, 3)]


@pytest.mark.parametrize("mode", QUERY_MODES)
def test_b_of_many_pairs_is_encoded_once_and_every_query_stays_the_same(encoder, mode):
    chosen, b, sizes = RouterSettings(query_mode=mode), noise(60, 44, batch=2), []
    encode = embed_once(lambda images: sizes.append(len(images)) or encoder.embed(images))
    for seed in (1, 2, 1):
        pair = noise(40, 50, seed=seed), noise(30, 50, seed=seed + 10)
        query = embed_analogy(chosen, encode, *pair, b, preprocessing=encoder.preprocessing)
        assert (query - embed_analogy(chosen, encoder.embed, *pair, b)).abs().max() < 5e-6
    if mode in SEPARATE_MODES:
        assert sizes == ([2, 2] if mode == "ca'-ca" else [4, 2])


def test_an_image_of_another_shape_with_the_same_bytes_is_another_image():
    encode = embed_once(lambda images: torch.full((len(images), 1), float(images.shape[1])))
    assert [float(encode(torch.zeros(1, *shape, 3))) for shape in ((2, 8), (8, 2), (4, 4))] == [2.0, 8.0, 4.0]


@pytest.mark.parametrize(
    "mode, shapes",
    [
        ("cat-aa'b", [(1, 4), (1, 4)]),
        ("cat-aa'b", [(1, 4), (1, 4), (1, 5)]),
        ("cat-aa'b", [(2, 4), (1, 4), (3, 4)]),
        ("cat-aa'b", [(1, 3, 4), (1, 3, 4), (1, 3, 4)]),
        ("aa'bb'", [(1, 4), (1, 4)]),
        ("ca'-ca", []),
    ],
)
def test_embeddings_that_do_not_join_are_refused(mode, shapes):
    with pytest.raises(ShapeError, match=r"Query mode .* takes \d image embeddings .*Embed all images"):
        join_embeddings(mode, [torch.ones(*shape) for shape in shapes])


def test_joined_embeddings_are_float32_in_the_order_a_a_prime_b():
    a, a_prime, b = (torch.full((1, 2), value, dtype=torch.float16) for value in (1.0, 2.0, 5.0))
    joined = join_embeddings("cat-aa'b", [a, a_prime, b.expand(3, 2)])
    assert joined.dtype == torch.float32
    assert joined.tolist() == [[1, 1, 2, 2, 5, 5]] * 3
    assert join_embeddings("ca'-ca", [a, a_prime]).tolist() == [[1, 1]]
    assert join_embeddings("ca'-ca+cb", [a, a_prime, b]).tolist() == [[6, 6]]


def test_an_unknown_mode_is_refused_rather_than_read_as_the_grid():
    for function, arguments in ((images_to_embed, [noise(8, 8)] * 3), (join_embeddings, [[torch.ones(1, 4)]])):
        with pytest.raises(SettingsError, match=r"query_mode is 'paab'\. Known are cat-aa'b"):
            function("paab", *arguments)
