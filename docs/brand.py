"""Draws icon.png (400 × 400) and banner.png (21:9) for the Comfy registry: the analogy circle : its edit :: square : ?.

python docs/brand.py
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
NIGHT, CARD, PLAIN, EDIT, TEXT = "#15171c", "#242832", "#aab2c0", "#ff8a3d", "#f3f5f8"
SCALE = 4  # drawn larger and reduced, for smooth edges


def draw_grid(side: int) -> Image.Image:
    """The 2 × 2 grid a | a′ over b | b′ with a gap between the cells, [side, side] on the night background."""
    size = side * SCALE
    image = Image.new("RGB", (size, size), NIGHT)
    draw = ImageDraw.Draw(image)
    gap, cell = size // 25, (size - 3 * (size // 25)) // 2
    for row, shape in enumerate(("circle", "square")):
        for column, is_edited in enumerate((False, True)):
            x, y = gap + column * (cell + gap), gap + row * (cell + gap)
            is_answer = is_edited and row == 1
            draw.rounded_rectangle(
                (x, y, x + cell, y + cell), cell // 7, CARD, outline=EDIT if is_answer else None, width=cell // 28
            )
            inset = cell // 4
            box = (x + inset, y + inset, x + cell - inset, y + cell - inset)
            fill, edge = (EDIT, TEXT) if is_edited else (PLAIN, None)
            if shape == "circle":
                draw.ellipse(box, fill, outline=edge, width=cell // 20)
            else:
                draw.rounded_rectangle(box, cell // 20, fill, outline=edge, width=cell // 20)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def draw_banner(width: int = 1260, height: int = 540) -> Image.Image:
    """The grid beside the name and one sentence."""
    banner = Image.new("RGB", (width, height), NIGHT)
    banner.paste(draw_grid(height - 80), (40, 40))
    draw = ImageDraw.Draw(banner)
    left = height + 20
    draw.text((left, 150), "LoRWeB", TEXT, ImageFont.load_default(110))
    draw.text((left, 285), "visual analogies", EDIT, ImageFont.load_default(64))
    draw.text((left, 375), "a : a'  ::  b : b'   for FLUX.1-Kontext", PLAIN, ImageFont.load_default(32))
    return banner


if __name__ == "__main__":
    draw_grid(400).save(FOLDER / "icon.png", optimize=True)
    draw_banner().save(FOLDER / "banner.png", optimize=True)
