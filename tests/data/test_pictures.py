"""Image files of every kind that people have, and files that are not images."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from retarget.data.images import pixels_of, read
from retarget.data.pictures import Picture, decode, decode_all, find, header, one_size
from retarget.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def saved(path, image, **more):
    image.save(path, **more)
    return Picture(str(path), path)


def test_grey_with_alpha_is_grey_and_colour_with_alpha_is_colour(tmp_path):
    alpha = Image.fromarray(RNG.integers(0, 256, (6, 8), dtype=np.uint8))
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    grey.putalpha(alpha)
    colour.putalpha(alpha)
    one, two = saved(tmp_path / "la.png", grey), saved(tmp_path / "rgba.png", colour)
    assert header(one) == (6, 8, True, False, False)
    assert header(two) == (6, 8, False, False, False)
    np.testing.assert_array_equal(decode(one, 1)[0], GREY)
    np.testing.assert_array_equal(decode(one, 3), np.stack([GREY] * 3))
    np.testing.assert_array_equal(decode(two, 3), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_camera_says(orientation, tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = saved(tmp_path / "a.png", Image.fromarray(COLOUR), exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.array(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(picture, 3), expected)
    assert header(picture)[:2] == expected.shape[1:]
    assert (header(picture)[:2] == (8, 6)) == header(picture).turned == (orientation >= 5)


def test_sixteen_bits_become_eight_and_are_not_clipped_to_white(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    picture = saved(tmp_path / "deep.png", Image.fromarray(deep))
    assert header(picture) == (6, 8, True, True, False)
    np.testing.assert_array_equal(decode(picture, 1)[0], GREY)


def test_cmyk_palettes_one_bit_and_animations_are_read(tmp_path):
    flat = Image.new("RGB", (8, 6), (200, 30, 90))
    cmyk = decode(saved(tmp_path / "cmyk.jpg", flat.convert("CMYK"), quality=100), 3)
    assert np.abs(cmyk.astype(int) - np.array([200, 30, 90])[:, None, None]).max() <= 4
    palette = decode(saved(tmp_path / "palette.gif", flat.quantize(4)), 3)
    np.testing.assert_array_equal(palette, np.broadcast_to(np.array([200, 30, 90])[:, None, None], (3, 6, 8)))
    one_bit = decode(saved(tmp_path / "bits.png", Image.fromarray(GREY > 127)), 1)
    np.testing.assert_array_equal(one_bit[0], np.where(GREY > 127, 255, 0))
    moving = saved(
        tmp_path / "moving.webp", flat, save_all=True, append_images=[Image.new("RGB", (8, 6))], lossless=True
    )
    assert decode(moving, 3)[:, 0, 0].tolist() == [200, 30, 90]


def test_an_image_of_one_pixel(tmp_path):
    picture = saved(tmp_path / "pixel.png", Image.new("L", (1, 1), 7))
    assert decode(picture, 1).tolist() == [[[7]]]
    assert decode(picture, 3, size=4).shape == (3, 4, 4)


def test_an_image_is_stretched_or_its_middle_is_kept(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 255
    picture = saved(tmp_path / "wide.png", Image.fromarray(wide))
    assert (decode(picture, 1, 4, crop=True) == 255).all()
    # Bilinear weights 1, 3, 3, 1 of eight, at the edge 3, 3, 1 of seven: one white pixel of weight 1 beside the middle.
    assert decode(picture, 1, 4)[0, 0].tolist() == [36, 223, 223, 36]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "ppm", "bmp"])
def test_a_file_that_ends_early_is_named(suffix, tmp_path):
    picture = saved(tmp_path / f"short.{suffix}", Image.fromarray(RNG.integers(0, 256, (60, 50, 3), dtype=np.uint8)))
    whole = picture.content.read_bytes()
    for length in (0, 5, len(whole) // 2):
        picture.content.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"short\.{suffix}: not an image, or a damaged one"):
            decode(picture, 3)


def test_random_damage_gives_an_image_or_an_error_that_names_the_file(tmp_path):
    rng, errors = np.random.default_rng(1), []
    for suffix in ("png", "jpg", "webp", "gif", "tif", "ppm", "bmp"):
        picture = saved(tmp_path / f"hit.{suffix}", Image.fromarray(COLOUR))
        whole = bytearray(picture.content.read_bytes())
        for _ in range(60):
            hit = bytearray(whole)
            for place in rng.integers(0, len(hit), size=3):
                hit[place] = rng.integers(256)
            picture.content.write_bytes(hit)
            try:
                assert decode(picture, 3, size=4).shape == (3, 4, 4)
            except UserError as error:
                errors.append(str(error))
    assert len(errors) > 50
    assert all("hit." in error for error in errors)


def test_formats_that_need_other_programs_and_floating_pixels_are_refused(tmp_path):
    (tmp_path / "ps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(UserError, match=r"ps\.png: not an image"):
        header(Picture(str(tmp_path / "ps.png"), tmp_path / "ps.png"))
    with pytest.raises(UserError, match=r"float\.tif: its pixels are floating-point numbers"):
        decode(saved(tmp_path / "float.tif", Image.fromarray(np.zeros((3, 3), np.float32))), 1)
    with pytest.raises(UserError, match=r"long\.tif: its pixels go from -4 to -4"):
        decode(saved(tmp_path / "long.tif", Image.fromarray(np.full((3, 3), -4, np.int32))), 1)


@pytest.mark.parametrize("limit", [40, 20])
def test_an_image_of_too_many_pixels_is_refused_by_name(limit, tmp_path, monkeypatch):
    """Beyond Pillow's limit, where Pillow only warns, and beyond twice that limit."""
    picture = saved(tmp_path / "bomb.png", Image.fromarray(GREY))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"bomb\.png: too large an image"):
        header(picture)


def test_files_are_found_by_suffix_in_order_and_hidden_ones_are_left_out(tmp_path):
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".hidden/c.png", "deep/d.webp", ".e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [one.name.removeprefix(f"{tmp_path}/") for one in find(tmp_path)] == ["a.jpeg", "b.PNG", "deep/d.webp"]


def test_images_of_formats_that_are_not_read_are_not_left_out_silently(tmp_path):
    for name in ("a.png", "b.heic", "c.HEIF", "d.svg", "notes.txt", "labels.csv", "a.json", "Thumbs.db", ".DS_Store",
                 ".cache/e.heic"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    said = (
        r"b\.heic: images of this format are not read, and 3 of the 4 images in .* \(\.HEIF, \.heic, \.svg\): convert"
    )
    with pytest.raises(UserError, match=said):
        find(tmp_path)
    for name in ("b.heic", "c.HEIF", "d.svg"):
        (tmp_path / name).unlink()
    assert [one.name for one in find(tmp_path)] == [str(tmp_path / "a.png")]


def test_avif_is_read_where_pillow_can_and_refused_elsewhere(tmp_path):
    (tmp_path / "a.avif").write_bytes(b"")
    if "avif" not in features.modules or not features.check("avif"):
        with pytest.raises(UserError, match=r"a\.avif: images of this format are not read, and 1 of the 1 images"):
            find(tmp_path)
        return
    exif = Image.Exif()
    exif[0x0112] = 6
    colour = np.repeat(np.repeat(COLOUR, 8, 0), 8, 1)
    Image.fromarray(colour).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4", exif=exif)
    (picture,) = find(tmp_path)
    found = decode(picture, 3)
    assert header(picture) == (64, 48, False, False, True)
    assert np.abs(found.astype(int) - np.rot90(colour, 3).transpose(2, 0, 1)).mean() < 3
    whole = (tmp_path / "a.avif").read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(60):
        hit = bytearray(whole)
        for place in rng.integers(0, len(hit), size=3):
            hit[place] = rng.integers(256)
        (tmp_path / "a.avif").write_bytes(hit)
        try:
            assert decode(picture, 3, size=4).shape == (3, 4, 4)
        except UserError as error:
            assert "a.avif" in str(error)  # noqa: PT017


def test_sizes_that_differ_are_named(tmp_path):
    pictures = [saved(tmp_path / f"{side}.png", Image.new("L", (side, 9))) for side in (3, 4)]
    with pytest.raises(UserError, match=r"4\.png is 4×9 pixels and .*3\.png 3×9"):
        one_size(pictures, [header(one) for one in pictures])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "webp"])
def test_the_header_says_the_size_that_is_decoded(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = saved(tmp_path / f"a.{suffix}", Image.fromarray(COLOUR), exif=exif)
    assert header(picture)[:2] == decode(picture, 3).shape[1:]


def test_linked_folders_and_rarer_suffixes_are_read_and_circles_are_not(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "class").mkdir()
    for file in ("far/a.png", "class/b.jfif", "class/c.jpe"):
        Image.fromarray(GREY).save(tmp_path / file, format="PNG" if file.endswith("png") else "JPEG")
    (tmp_path / "class/more").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "class/back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "class/self").symlink_to(tmp_path / "class", target_is_directory=True)
    names = [one.name.removeprefix(f"{tmp_path}/class/") for one in find(tmp_path / "class")]
    assert names == ["b.jfif", "c.jpe", "more/a.png"]


@pytest.mark.parametrize("top", [1, 255, 4095])
@pytest.mark.parametrize(("suffix", "kind"), [("png", np.uint16), ("tif", np.uint16), ("pgm", np.uint16),
                                              ("tif", np.int32)])  # fmt: skip
def test_twelve_bits_in_files_of_more_are_refused_and_not_made_black(top, suffix, kind, tmp_path):
    pixels = np.minimum(GREY.astype(np.int64) * 16, top - 1)
    pictures = [saved(tmp_path / f"{at}.{suffix}", Image.fromarray(pixels.astype(kind))) for at in (0, 2)]
    pixels[3, 4] = top
    pictures.insert(1, saved(tmp_path / f"1.{suffix}", Image.fromarray(pixels.astype(kind))))
    assert all(header(picture).wide for picture in pictures)
    with pytest.raises(UserError, match=rf"1\.{suffix}: .* 16 or 32 bits but go only to {top}, .* 8 bits per channel"):
        list(decode_all(pictures, 1))


def sixteen_bit_png(path, kind, *pixel):
    """A PNG of 2×2 pixels with 16 bits per channel, one black and one given, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    alpha = (65535,) * (kind in (4, 6))
    row = (*(0 for _ in pixel), *alpha, *pixel, *alpha)
    rows = b"".join(b"\0" + struct.pack(f">{len(row)}H", *row) for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return Picture(str(path), path)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 3), (4, 1)])  # RGB, and RGB and grey with an opaque alpha
def test_twelve_bits_in_colour_or_with_alpha_are_refused_too(kind, channels, tmp_path):
    with pytest.raises(UserError, match=r"c\.png: .* 16 or 32 bits but go only to 4095"):
        list(decode_all([sixteen_bit_png(tmp_path / "c.png", kind, *[4000, 0, 7][:channels])], 3))
    (pixels,) = decode_all([sixteen_bit_png(tmp_path / "w.png", kind, *[65535, 0, 7][:channels])], 3)
    assert (pixels.shape, pixels.max()) == ((3, 2, 2), 255)
    (pixels,) = decode_all([sixteen_bit_png(tmp_path / "b.png", kind, *[0] * channels)], 3)
    assert pixels.max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_picture_that_is_only_in_its_transparency_is_refused(mode, tmp_path):
    """A black icon without a background: without its transparency it is a black square."""
    icon = Image.new("LA" if mode == "LA" else "RGBA", (4, 4))
    icon.putpixel((1, 1), (0, 255) if mode == "LA" else (0, 0, 0, 255))
    picture = saved(tmp_path / "icon.png", icon.convert("P") if mode == "P" else icon)
    with pytest.raises(UserError, match=r"icon\.png: it shows something only by its transparency"):
        decode(picture, 3)
    icon.putpixel((2, 2), (200, 255) if mode == "LA" else (200, 0, 0, 255))
    seen = saved(tmp_path / "seen.png", icon.convert("P") if mode == "P" else icon)
    assert decode(seen, 3).max() == 200
    solid = saved(tmp_path / "solid.png", Image.new("RGBA", (4, 4), (9, 9, 9, 255)))
    assert decode(solid, 1).tolist() == [[[9] * 4] * 4]


@pytest.mark.parametrize(("suffix", "kind"), [("png", np.uint16), ("pgm", np.uint16), ("tif", np.int32)])
def test_wide_images_of_one_part_have_one_scale(suffix, kind, tmp_path):
    """A dark image, at most 255, beside one with a bright pixel; alone, it was once read as 8 bits."""
    dark = np.full((4, 4), 200)
    bright = dark.copy()
    bright[0, 0] = 60_000
    dark, bright = (
        saved(tmp_path / f"{name}.{suffix}", Image.fromarray(pixels.astype(kind)))
        for name, pixels in (("dark", dark), ("bright", bright))
    )
    eight = saved(tmp_path / "eight.png", Image.fromarray(GREY))
    one, two, three = decode_all([dark, bright, eight], 1)
    assert (one.max(), two[0, 0, 0], two[0, 1:].max()) == (1, 233, 1)
    np.testing.assert_array_equal(three[0], GREY)


def test_the_largest_value_that_a_pgm_file_declares_is_its_white(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([0, 4095], ">u2").tobytes())
    assert [one.tolist() for one in decode_all([Picture("a", tmp_path / "a.pgm")], 1)] == [[[[0, 255]]]]


def test_black_images_have_no_scale_to_doubt(tmp_path):
    black = saved(tmp_path / "a.png", Image.fromarray(np.zeros((2, 2), np.uint16)))
    assert [one.max() for one in decode_all([black], 1)] == [0]


@pytest.mark.parametrize(("value", "said"), [(-4, "-4 to 9"), (70_000, "9 to 70000")])
def test_more_than_16_bits_are_refused(value, said, tmp_path):
    picture = saved(tmp_path / "long.tif", Image.fromarray(np.array([[9, value]], np.int32)))
    with pytest.raises(UserError, match=rf"long\.tif: its pixels go from {said}; save it with 8 or 16 bits"):
        decode(picture, 1)


@pytest.mark.parametrize(("side", "crop"), [(8, False), (8, True), (13, False), (40, True)])
def test_files_and_arrays_are_resized_alike(tmp_path, side, crop):
    """Else a measure between the two, as of samples and real images, would measure the reader."""
    images = np.random.default_rng(0).integers(0, 256, (6, 21, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=np.arange(6) % 2)
    for row, one in enumerate(images):
        folder = tmp_path / "set" / str(row % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(folder / f"{row}.png")
    arrays, files = (read(str(tmp_path / name)).train for name in ("set.npz", "set"))
    ours = pixels_of(arrays, 3, side, crop).int()[[0, 2, 4, 1, 3, 5]]
    assert int((ours - pixels_of(files, 3, side, crop).int()).abs().max()) <= 1
