"""Labelled images in all formats, and the order of a training."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from landprior.domains.imagery import downloads as module
from landprior.domains.imagery.downloads import download_images
from landprior.domains.imagery.feeding import ShuffledOrder, Standardiser
from landprior.domains.imagery.formats import CIFAR_CLASSES, read_idx_file, read_images
from landprior.domains.imagery.images import UNKNOWN
from landprior.errors import InputError, LandpriorError, MissingInputError, RasterReadError, SourceError

REPOSITORY = Path(__file__).resolve().parents[2]


def write_idx(path, values):
    values = np.asarray(values, np.uint8)
    content = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_png(path, values):
    bands, height, width = values.shape
    options = {"driver": "PNG", "count": bands, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", **options) as target:
        target.write(values)


def write_mnist(folder, rng, *, suffix=""):
    folder.mkdir(exist_ok=True)
    arrays = {}
    for part, count in (("train", 6), ("t10k", 4)):
        x, y = rng.integers(0, 256, (count, 5, 4), np.uint8), rng.integers(0, 3, count, np.uint8)
        y[:3] = 0, 1, 2
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", x)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", y)
        arrays[part] = x, y
    return arrays


def same(found, x, y):
    np.testing.assert_array_equal(found.images.numpy(), x)
    np.testing.assert_array_equal(found.labels.numpy(), y)
    assert found.images.dtype == torch.uint8
    assert found.labels.dtype == torch.int64


# -- npz ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["grey", "last", "first"])
def test_npz_layouts(tmp_path, rng, layout):
    bands = 1 if layout == "grey" else 3
    x, y = rng.integers(0, 256, (6, bands, 7, 9), np.uint8), np.array([0, 1, 2, 0, 1, -1])
    stored = {"grey": x[:, 0], "last": x.transpose(0, 2, 3, 1), "first": x}[layout]
    np.savez(tmp_path / "a.npz", x_train=stored, y_train=y, x_test=stored[:2], y_test=y[:2])
    found = read_images(tmp_path / "a.npz")
    same(found.train, x, y)
    same(found.test, x[:2], y[:2])
    assert found.train.classes == ("0", "1", "2")
    assert not found.train.known
    assert found.test.known
    assert found.test.names == ("test/0", "test/1")


def test_npz_with_names_and_without_a_test_set(tmp_path):
    x = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.array(["old", "young", "old"]), classes=np.array(["young", "old"]))
    found = read_images(tmp_path / "a.npz")
    assert found.test is None
    assert found.train.classes == ("young", "old")
    assert found.train.labels.tolist() == [1, 0, 1]


GREY = np.zeros((3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "error", "text"),
    [
        ({"x": GREY.astype(float), "y": [0, 1, 0]}, InputError, r"x of .*a.npz has float64 numbers"),
        ({"x": GREY, "y": [0, 1]}, InputError, "x has 3 images, and y the shape"),
        ({"x": GREY[:, :, 0], "y": [0, 1, 0]}, InputError, r"shape \(3, 4\)"),
        ({"x": GREY, "y": [0.5, 1, 0]}, InputError, "labels are float64"),
        ({"x": GREY, "y": [0, 1, -2]}, InputError, "the label -2 is not among the 2 classes"),
        ({"x": GREY, "y": [0, 0, 0]}, InputError, "give at least two classes"),
        ({"x": GREY, "y": np.array([0, "b", None], object)}, RasterReadError, "plain arrays"),
        ({"x_test": GREY, "y_test": [0, 1, 0]}, InputError, "must have x_train and y_train"),
        (
            {"x_train": GREY, "y_train": [0, 1, 0], "x_test": GREY[:, 1:], "y_test": [0, 1, 0]},
            InputError,
            "differ in size",
        ),
    ],
)
def test_invalid_npz_files(tmp_path, arrays, error, text):
    np.savez(tmp_path / "a.npz", **{name: np.asarray(values) for name, values in arrays.items()})
    with pytest.raises(error, match=text) as found:
        read_images(tmp_path / "a.npz")
    assert "\n" not in str(found.value)


def test_a_damaged_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not much")
    with pytest.raises(RasterReadError, match=r"cannot be read as .npz"):
        read_images(tmp_path / "a.npz")


def test_a_label_outside_the_given_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x=GREY, y=np.array(["a", "b", "c"]))
    with pytest.raises(InputError, match=r"the label 'c' is not among the classes \(a, b\)"):
        read_images(tmp_path / "a.npz", classes=("a", "b"))


# -- IDX ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, rng, suffix):
    arrays = write_mnist(tmp_path, rng, suffix=suffix)
    found = read_images(tmp_path)
    for split, part in ((found.train, "train"), (found.test, "t10k")):
        same(split, arrays[part][0][:, None], arrays[part][1])


def test_idx_that_is_truncated_or_longer(tmp_path, rng):
    write_mnist(tmp_path, rng)
    path = tmp_path / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    for content, fault in ((whole[:-5], "truncated: 131 bytes, not 136"), (whole + b"0", "longer than its header")):
        path.write_bytes(content)
        with pytest.raises(RasterReadError, match=fault):
            read_images(tmp_path)
    path.write_bytes(whole[:9])
    with pytest.raises(RasterReadError, match="truncated in its header"):
        read_images(tmp_path)
    path.write_bytes(b"\x89PNG")
    with pytest.raises(RasterReadError, match="not an IDX file of unsigned bytes"):
        read_images(tmp_path)


def test_invalid_or_truncated_idx_gzip(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(RasterReadError, match="not a complete gzip file"):
        read_idx_file(path)
    write_idx(path, np.arange(200))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(RasterReadError, match="not a complete gzip file"):
        read_idx_file(path)


def test_idx_without_labels(tmp_path, rng):
    write_mnist(tmp_path, rng)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(MissingInputError, match="train-labels-idx1-ubyte"):
        read_images(tmp_path)


def test_idx_with_another_number_of_labels(tmp_path, rng):
    write_mnist(tmp_path, rng)
    write_idx(tmp_path / "train-labels-idx1-ubyte", [0, 1])
    with pytest.raises(InputError, match="each image needs one label"):
        read_images(tmp_path)


# -- CIFAR -------------------------------------------------------------------------------------------


def write_cifar(folder, rng):
    arrays = []
    for name, count in (("data_batch_1", 3), ("data_batch_2", 2), ("test_batch", 2)):
        x, y = rng.integers(0, 256, (count, 3, 32, 32), np.uint8), rng.integers(0, 10, count, np.uint8)
        records = np.concatenate([y[:, None], x.reshape(count, -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
        arrays.append((x, y))
    return arrays


def test_cifar(tmp_path, rng):
    one, two, test = write_cifar(tmp_path, rng)
    found = read_images(tmp_path)
    same(found.train, np.concatenate([one[0], two[0]]), np.concatenate([one[1], two[1]]))
    same(found.test, *test)
    assert found.train.classes == CIFAR_CLASSES
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert read_images(tmp_path).train.classes == tuple("abcdefghij")


def test_cifar_that_is_truncated(tmp_path, rng):
    write_cifar(tmp_path, rng)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RasterReadError, match=r"6145 bytes, not a multiple of 3073"):
        read_images(tmp_path)


def test_cifar_with_an_invalid_label(tmp_path, rng):
    write_cifar(tmp_path, rng)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x0b" + path.read_bytes()[1:])
    with pytest.raises(InputError, match="the label 11 is not among the 10 classes"):
        read_images(tmp_path)


def test_sheets(tmp_path, rng):
    x, y = rng.integers(0, 256, (5, 3, 32, 32), np.uint8), np.array([0, 1, 2, 1, 0])
    sheet = np.zeros((3, 64, 96), np.uint8)
    for i, tile in enumerate(x):
        row, column = divmod(i, 3)
        sheet[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = tile
    write_png(tmp_path / "train.png", sheet)
    np.savez(tmp_path / "labels.npz", y_train=y)
    same(read_images(tmp_path).train, x, y)
    np.savez(tmp_path / "labels.npz", y_train=np.zeros(7, int))
    with pytest.raises(InputError, match="has no 7 tiles"):
        read_images(tmp_path)


# -- folders -----------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path, rng):
    x = rng.integers(0, 256, (4, 3, 6, 5), np.uint8)
    for i, values in enumerate(x):
        write_png(tmp_path / f"{i}.png", values)
    (tmp_path / "labels.csv").write_text(
        "file,label,split\n0.png,cat,\n1.png,dog,train\n2.png,,train\n3.png,cat,test\n"
    )
    return tmp_path, x


def test_a_folder_with_a_table(photos):
    folder, x = photos
    found = read_images(folder)
    same(found.train, x[:3], [0, 1, UNKNOWN])
    same(found.test, x[3:], [0])
    assert found.train.classes == ("cat", "dog")
    assert found.train.names == ("0.png", "1.png", "2.png")
    assert read_images(folder, classes=("fox", "dog", "cat")).train.labels.tolist() == [2, 1, UNKNOWN]


def test_numeric_labels_are_sorted_numerically(photos):
    folder, _ = photos
    (folder / "t.csv").write_text("file,label\n0.png,10\n1.png,9\n2.png,100\n")
    assert read_images(folder, table=folder / "t.csv").train.classes == ("9", "10", "100")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("file,label\n0.png,a\nno.png,b\n", MissingInputError, "no such file: .*no.png"),
        ("name,label\n0.png,a\n", InputError, "no column 'file'; it has name, label"),
        ("file,label,split\n0.png,a,valid\n", InputError, "line 2: the split 'valid' is neither train nor test"),
        ("file,label\n0.png,a,b\n", InputError, "line 2: more values than the header"),
        ("file,label,split\n0.png,a,test\n", InputError, "lists no training images"),
        ("file\n0.png\n1.png\n", InputError, "--classes"),
        ("file,label\n0.png,a\nsmall.png,b\n", InputError, "small.png is 5 x 4 px in 3 bands, but 0.png 5 x 6 px"),
        ("file,label\n0.png,a\ngrey.png,b\n", InputError, "grey.png is 5 x 6 px in 1 band, but"),
        ("file,label\n0.png,a\nwide.png,b\n", InputError, "wide.png has uint16 numbers"),
        ("file,label\n0.png,a\nlabels.csv,b\n", RasterReadError, "labels.csv cannot be read as a raster"),
    ],
)
def test_invalid_tables(photos, text, error, said):
    folder, x = photos
    write_png(folder / "small.png", x[0][:, :4])
    write_png(folder / "grey.png", x[0][:1])
    with (
        rasterio.open(folder / "wide.png", "w", driver="PNG", count=3, height=6, width=5, dtype="uint16") as target,
    ):
        target.write(x[0].astype(np.uint16))
    (folder / "t.csv").write_text(text)
    with pytest.raises(error, match=said):
        read_images(folder, table=folder / "t.csv")


def test_a_table_that_is_not_text(photos):
    folder, _ = photos
    (folder / "t.csv").write_bytes(b"file,label\n\xff\xfe\n")
    with pytest.raises(RasterReadError, match="UTF-8"):
        read_images(folder, table=folder / "t.csv")


def test_a_palette_is_expanded_to_colours(tmp_path):
    codes = np.array([[[0, 1], [1, 0]]], np.uint8)
    with (
        rasterio.open(tmp_path / "a.png", "w", driver="PNG", count=1, height=2, width=2, dtype="uint8") as target,
    ):
        target.write(codes)
        target.write_colormap(1, {0: (10, 20, 30), 1: (40, 50, 60)})
    (tmp_path / "labels.csv").write_text("file,label\na.png,x\n")
    found = read_images(tmp_path, classes=("x", "y")).train.images
    assert found[0, :, 0].tolist() == [[10, 40], [20, 50], [30, 60]]


@pytest.mark.parametrize(("name", "said"), [("nowhere", "no such file or folder"), ("", "has no train-images")])
def test_missing_images(tmp_path, name, said):
    with pytest.raises(MissingInputError, match=said):
        read_images(tmp_path / name)


def test_a_file_of_another_format(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"")
    with pytest.raises(InputError, match=r"a.mat is not a .npz"):
        read_images(tmp_path / "a.mat")


# -- downloads ---------------------------------------------------------------------------------------


class FakeNetwork:
    """Copies files from a folder, except from refused mirrors."""

    def __init__(self, folder, *, refused=()):
        self._folder, self._refused, self.asked = folder, refused, []

    def download(self, remote, origin, *, path, md5):
        self.asked.append(remote.href)
        assert re.fullmatch("[0-9a-f]{32}", md5)
        if any(part in remote.href for part in self._refused):
            message = f"{origin.name}: no answer; {origin.remedy}"
            raise SourceError(message)
        shutil.copy(self._folder / Path(remote.href).name, path)


@pytest.fixture(autouse=True)
def _fake_downloads(monkeypatch):
    """Let a FakeNetwork do the downloads."""
    monkeypatch.setattr(
        "landprior.domains.imagery.downloads.download",
        lambda network, remote, origin, *, path, md5: network.download(remote, origin, path=path, md5=md5),
    )


def test_mnist_comes_from_the_next_mirror(tmp_path, rng):
    arrays = write_mnist(tmp_path / "there", rng, suffix=".gz")
    from torchvision.datasets import MNIST

    network = FakeNetwork(tmp_path / "there", refused=[MNIST.mirrors[0]])
    found = download_images("mnist", tmp_path / "root", network)
    same(found.train, arrays["train"][0][:, None], arrays["train"][1])
    assert len(network.asked) == 8
    assert (tmp_path / "root" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").is_file()
    download_images("mnist", tmp_path / "root", network)
    assert len(network.asked) == 8  # nothing is downloaded again


def test_mnist_without_any_mirror(tmp_path):
    with pytest.raises(SourceError, match="MNIST: no answer; download it by hand"):
        download_images("mnist", tmp_path, FakeNetwork(tmp_path, refused=["http"]))


def test_cifar_by_torchvision(tmp_path, monkeypatch):
    class Fake:
        url, filename, tgz_md5, base_folder = "https://x/y.tar.gz", "y.tar.gz", "0" * 32, "cifar"

        def __init__(self, root, *, train, download):
            assert (root / self.filename).is_file()
            assert download
            count = 3 if train else 2
            self.data = np.full((count, 32, 32, 3), 7 if train else 9, np.uint8)
            self.targets = list(range(count))

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    (tmp_path / "y.tar.gz").write_bytes(b"")
    found = download_images("cifar10", tmp_path / "root", FakeNetwork(tmp_path))
    assert found.train.images.shape == (3, 3, 32, 32)
    assert found.test.labels.tolist() == [0, 1]
    assert found.train.classes == CIFAR_CLASSES


def test_an_invalid_archive(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(LandpriorError, match=r"CIFAR-10 in .* cannot be used"):
        module._download_cifar(tmp_path, FakeNetwork(tmp_path, refused=["http"]))


# -- training ----------------------------------------------------------------------------------------


def test_bands_are_standardised(rng):
    values = rng.integers(0, 256, (5000, 2, 3, 4), np.uint8)
    values[:, 1] //= 3
    x = torch.from_numpy(values)
    found = Standardiser.of(x)
    np.testing.assert_allclose(found.mean, values.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.std, values.std((0, 2, 3)), rtol=1e-6)
    standard = found(x)
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert (Standardiser.of(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))(x[:1, :1]) >= 0).all()  # never a division by 0


def test_an_epoch_contains_every_item_once():
    order = ShuffledOrder(10, 3, seed=4)
    assert order.epoch_steps == 3
    epochs = [[order(step).tolist() for step in range(3 * e, 3 * e + 3)] for e in range(3)]
    for epoch in epochs:
        items = [item for batch in epoch for item in batch]
        assert len(items) == len(set(items)) == 9
        assert set(items) <= set(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    again = ShuffledOrder(10, 3, seed=4)
    assert [again(step).tolist() for step in (8, 0, 4)] == [epochs[2][2], epochs[0][0], epochs[1][1]]
    assert ShuffledOrder(10, 3, seed=5)(0).tolist() != epochs[0][0]
    assert ShuffledOrder(4, 99, seed=0)(0).sort().values.tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def pictures():
    folder = Path(os.environ.get("LANDPRIOR_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "mnist").is_dir() or not (folder / "cifar10").is_dir():
        pytest.skip(f"no mnist/ and cifar10/ at {folder}; set LANDPRIOR_TEST_DATA")
    return folder


@pytest.mark.realdata
def test_real_digits(pictures):
    found = read_images(pictures / "mnist" / "mnist.npz")
    assert found.train.images.shape == (40001, 1, 28, 28)
    assert found.test.images.shape == (6667, 1, 28, 28)
    assert len(found.train.classes) == 10
    standardise = Standardiser.of(found.train.images)
    assert float(standardise.mean) / 255 == pytest.approx(0.1307, abs=1e-3)
    assert float(standardise.std) / 255 == pytest.approx(0.3081, abs=1e-3)


@pytest.mark.realdata
def test_real_photographs(pictures):
    found = read_images(pictures / "cifar10")
    assert found.train.images.shape == (6000, 3, 32, 32)
    assert torch.bincount(found.train.labels).tolist() == [600] * 10
    assert torch.bincount(found.test.labels).tolist() == [150] * 10
    mean = Standardiser.of(found.train.images).mean / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.01)
