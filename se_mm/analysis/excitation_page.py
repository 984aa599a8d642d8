"""The page of an analysis of gates, one HTML file with all pictures inside, and the files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from se_mm.utils import InputError, installed_versions, write_json, written_whole

from .comparison import signed
from .examples import data_uri
from .excitation import Analysis
from .figures import save_figure
from .gate_bank import REPLACEMENTS
from .gate_figures import as_svg, draw_classes, draw_profile, draw_spread, draw_worth, panels
from .gate_statistics import GateStatistics

GROUPINGS = {'class': 'classes', 'number of objects': 'numbers of objects', 'size of objects': 'sizes of objects'}
FORBIDDEN = re.compile(r'[%/\\:*?"<>|\x00-\x1f]|^\.')  # in names of files, of any system; and the mark that replaces


class Key(NamedTuple):
    """Which picture.

    Attributes:
        network: name of the network, None for a picture of all networks.
        kind: 'profile', 'worth', 'classes' or 'spread'.
    """

    network: str | None
    kind: str


class Picture(NamedTuple):
    """A picture with its caption."""

    figure: Figure
    caption: str


def check_names(names: Sequence[str]) -> None:
    """Look whether files can be named after networks.

    Raises:
        InputError: a name is empty, or two names are equal or differ in capital letters only, which some systems
            take for one file.
    """
    for i, name in enumerate(names):
        if not name:
            raise InputError('a network has an empty name, and files are named after networks: give it a name')
        for other in names[:i]:
            if other.casefold() == name.casefold():
                raise InputError(
                    f'files of the networks {other} and {name} would overwrite each other: give the networks names '
                    'that differ not only in capital letters'
                )


def file_stem(name: str) -> str:
    """The name of a network as the beginning of names of files; different names give different ones."""
    return FORBIDDEN.sub(lambda found: f'%{ord(found[0]):02X}', name)


def has_class(statistics: GateStatistics, name: str) -> bool:
    """Whether there are images of a class."""
    try:
        statistics.group('class', name)
    except InputError:
        return False
    return True


def some_classes(statistics: GateStatistics, number: int = 4) -> list[str]:
    """Evenly spaced classes that have images."""
    if 'class' not in statistics.groupings:
        return []
    seen = [name for name in statistics.groupings['class'].groups if has_class(statistics, name)]
    return [seen[i] for i in np.linspace(0, len(seen) - 1, min(number, len(seen))).round().astype(int)]


def shown_classes(networks: Sequence[Analysis], classes: Sequence[str] | None) -> dict[str, list[str]]:
    """The classes that pictures of each network show, by name of the network.

    Args:
        networks: at least one.
        classes: the classes that are wanted; a network without images of one leaves it out. None for four of each
            network.

    Raises:
        InputError: no network has images of a class.
    """
    if classes is None:
        return {network.name: some_classes(network.statistics) for network in networks}
    for name in classes:
        if not any(has_class(network.statistics, name) for network in networks):
            networks[0].statistics.group('class', name)  # raises the error
    wanted = list(dict.fromkeys(classes))
    return {network.name: [c for c in wanted if has_class(network.statistics, c)] for network in networks}


def draw(networks: Sequence[Analysis], classes: dict[str, list[str]], channels: int) -> dict[Key, Picture]:
    """All pictures.

    Args:
        networks: at least one, with different names.
        classes: of :func:`shown_classes`.
        channels: number of channels that panels show.
    """
    many = len(networks) > 1
    caption = 'Each point is an SE layer, in the order of depth.'
    if any('class' in network.statistics.groupings for network in networks):
        caption += ' Dotted: the share of variance that classes without meaning would have.'
    profile = draw_profile({network.name: network.statistics for network in networks})
    found = {Key(None, 'profile'): Picture(profile, caption)}
    for network in networks:
        statistics, of = network.statistics, f' of {network.name}' if many else ''
        if network.worth:
            found[Key(network.name, 'worth')] = Picture(
                draw_worth(network.worth, network.score.name, network.score.unit),
                f'How much worse the {network.score.name}{of} is with other gates, with 95 % intervals.',
            )
        if shown := classes[network.name]:
            layers, pair = panels(list(statistics.layers)), shown[:2]
            found[Key(network.name, 'classes')] = Picture(
                draw_classes(statistics, layers, shown, channels),
                f'Mean gates{of} for the images of some classes, and for all images. Channels are evenly spaced.',
            )
            found[Key(network.name, 'spread')] = Picture(
                draw_spread(statistics, layers, pair, channels),
                f'Mean and standard deviation of gates{of} over the images of {" and of ".join(pair)}.',
            )
    return found


def render(
    networks: Sequence[Analysis],
    pictures: dict[Key, str],
    captions: dict[Key, str],
    *,
    missing: dict[str, list[str]],
    split: str | None,
    tolerance: float,
    specific: float,
    command: str | None,
    remarks: Sequence[str] = (),
) -> str:
    """The page as HTML.

    Args:
        networks: at least one.
        pictures: as SVG.
        captions: of all pictures.
        missing: by name of a network, the wanted classes that its pictures lack.
        split, tolerance, specific, command, remarks: of :func:`write_analysis`.
    """
    environment = Environment(
        loader=PackageLoader('se_mm.analysis', '.'), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters['number'] = lambda value: '-' if value is None else f'{round(value, 3) + 0.0:.3f}'
    environment.filters['percent'] = lambda value: f'{100 * value:.1f} %'
    environment.filters['signed'] = signed
    profiles = {network.name: network.statistics.profile() for network in networks}
    return environment.get_template('excitation.html.j2').render(
        networks=networks,
        many=len(networks) > 1,
        profiles=profiles,
        pictures={key: data_uri(svg.encode(), 'image/svg+xml') for key, svg in pictures.items()},
        captions=captions,
        images=_images(networks),
        groupings=GROUPINGS,
        sizes=any('size of objects' in network.statistics.groupings for network in networks),
        replacements=REPLACEMENTS,
        positions=any(row.position_spread is not None for rows in profiles.values() for row in rows),
        thresholds=networks[0].statistics.thresholds,
        missing=missing,
        split=split,
        tolerance=tolerance,
        specific=specific,
        command=command,
        remarks=remarks,
        versions=installed_versions(),
        date=datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z'),
    )


def _images(networks: Sequence[Analysis]) -> str:
    """How many images the networks have seen; interrupted networks have seen fewer."""
    if len({network.statistics.images for network in networks}) == 1:
        return f'{networks[0].statistics.images} images'
    return ' and '.join(f'{network.statistics.images} images ({network.name})' for network in networks)


def write_numbers(network: Analysis, folder: str | Path) -> None:
    """Write the statistics (npz) and the table (CSV) of a network; files of its name are replaced.

    Args:
        network: with statistics of at least one image.
        folder: is made if it is not there.
    """
    folder, stem = Path(folder), file_stem(network.name)
    network.statistics.save(folder / f'{stem}.npz')
    with written_whole(folder / f'{stem}.csv') as partial:
        partial.write_text(network.table(), encoding='utf-8')


def write_analysis(
    networks: Sequence[Analysis],
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    channels: int = 50,
    split: str | None = None,
    tolerance: float = 0.5,
    specific: float = 0.1,
    command: str | None = None,
    remarks: Sequence[str] = (),
) -> Path:
    """Write statistics (npz), tables (CSV), numbers (JSON), pictures (PNG, SVG) and the page, excitation.html.

    All numbers are written before anything is drawn. Names of files begin with names of networks, see
    :func:`file_stem`.

    Args:
        networks: at least one, with different names and statistics of at least one image.
        folder: is made if it is not there; files of an earlier analysis are replaced.
        classes: that pictures show beside all images; a network without images of one leaves it out. None for four
            classes of each network.
        channels: number of channels that pictures show.
        split: that the images are from, for the page.
        tolerance: of :meth:`Analysis.judge`, for the page.
        specific: of :meth:`Analysis.judge`, for the page.
        command: the command that made the page.
        remarks: what is missing, and why, for the page.

    Returns:
        The page.

    Raises:
        InputError: of :func:`check_names`, then nothing is written; or no network has images of a class, then only
            numbers are written.
    """
    check_names([network.name for network in networks])
    folder = Path(folder)
    for network in networks:
        write_numbers(network, folder)
    write_json(folder / 'excitation.json', [network.numbers() for network in networks])
    shown = shown_classes(networks, classes)
    pictures = draw(networks, shown, channels)
    svgs = {}
    for key, picture in pictures.items():
        svgs[key] = as_svg(picture.figure)
        stem = key.kind if key.network is None else f'{file_stem(key.network)}_{key.kind}'
        save_figure(picture.figure, folder / f'{stem}.png')
        with written_whole(folder / f'{stem}.svg') as partial:
            partial.write_text(svgs[key], encoding='utf-8')
    page = render(
        networks,
        svgs,
        {key: picture.caption for key, picture in pictures.items()},
        missing={name: [c for c in classes or () if c not in found] for name, found in shown.items()},
        split=split,
        tolerance=tolerance,
        specific=specific,
        command=command,
        remarks=remarks,
    )
    with written_whole(folder / 'excitation.html') as partial:
        partial.write_text(page, encoding='utf-8')
    return folder / 'excitation.html'
