"""The page of an analysis of gates, one HTML file with all pictures inside, and the files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from se_mm.utils import installed_versions, write_json, written_whole

from .examples import data_uri
from .excitation import Analysis
from .figures import save_figure
from .gate_figures import as_svg, draw_classes, draw_profile, draw_spread, draw_worth, panels
from .gate_statistics import GateStatistics
from .gate_worth import REPLACEMENTS

GROUPINGS = {'class': 'classes', 'number of objects': 'numbers of objects', 'size of objects': 'sizes of objects'}


Pictures = dict[str, tuple[Figure, str]]  # with their captions


def draw(networks: Sequence[Analysis], classes: Sequence[str], channels: int) -> Pictures:
    """All pictures with their captions; names begin with that of a network, and 'profile' shows all networks.

    Args:
        networks: at least one.
        classes: that panels show, beside all images.
        channels: number of channels that panels show.

    Raises:
        InputError: a class does not exist or has no images.
    """
    many = len(networks) > 1
    found = {
        'profile': (
            draw_profile({network.name: network.statistics for network in networks}),
            'Each point is an SE layer, in the order of the network. Dotted: the share of variance that classes '
            'without meaning would have.',
        )
    }
    for network in networks:
        statistics, of = network.statistics, f' of {network.name}' if many else ''
        if network.worth:
            found[f'{network.name}/worth'] = (
                draw_worth(network.worth, network.score.name, network.score.unit),
                f'How much worse the {network.score.name}{of} is with other gates, with 95 % intervals.',
            )
        if classes:
            layers = panels(list(statistics.layers))
            found[f'{network.name}/classes'] = (
                draw_classes(statistics, layers, classes, channels),
                f'Mean gates{of} for the images of some classes, and for all images. Channels are evenly spaced.',
            )
            found[f'{network.name}/spread'] = (
                draw_spread(statistics, layers, classes[:2], channels),
                f'Mean and standard deviation of gates{of} over the images of two classes.',
            )
    return found


def render(
    networks: Sequence[Analysis],
    pictures: Pictures,
    *,
    split: str | None,
    tolerance: float,
    command: str | None,
    remarks: Sequence[str] = (),
) -> str:
    """The page as HTML.

    Args:
        networks: at least one.
        pictures: of :func:`draw`.
        split, tolerance, command, remarks: of :func:`write_analysis`.
    """
    environment = Environment(
        loader=PackageLoader('se_mm.analysis', '.'), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters['number'] = lambda value: '-' if value is None else f'{value:.3f}'
    environment.filters['percent'] = lambda value: f'{100 * value:.1f} %'
    profiles = [row for network in networks for row in network.statistics.profile()]
    return environment.get_template('excitation.html.j2').render(
        networks=networks,
        pictures={name: data_uri(as_svg(figure).encode(), 'image/svg+xml') for name, (figure, _) in pictures.items()},
        captions={name: caption for name, (_, caption) in pictures.items()},
        groupings=GROUPINGS,
        replacements=REPLACEMENTS,
        positions=any(row.position_spread is not None for row in profiles),
        thresholds=networks[0].statistics.thresholds,
        split=split,
        tolerance=tolerance,
        command=command,
        remarks=remarks,
        versions=installed_versions(),
        date=datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z'),
    )


def some_classes(statistics: GateStatistics, number: int = 4) -> list[str]:
    """Evenly spaced classes that have images."""
    if not statistics.layers or 'class' not in statistics.groupings:
        return []
    classes = statistics.groupings['class']
    count = next(iter(statistics.layers.values())).count[classes.places].tolist()
    seen = [name for name, images in zip(classes.groups, count) if images]
    return [seen[i] for i in np.linspace(0, len(seen) - 1, min(number, len(seen))).round().astype(int)]


def write_analysis(
    networks: Sequence[Analysis],
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    channels: int = 50,
    split: str | None = None,
    tolerance: float = 0.5,
    command: str | None = None,
    remarks: Sequence[str] = (),
) -> Path:
    """Write statistics (npz), tables (CSV), numbers (JSON), pictures (PNG, SVG) and the page, excitation.html.

    Args:
        networks: at least one, with names of their own.
        folder: is made if it is not there; files of an earlier analysis are replaced.
        classes: that pictures show beside all images, None for four with images.
        channels: number of channels that pictures show.
        split: that the images are from, for the page.
        tolerance: of :meth:`Analysis.judge`, for the page.
        command: the command that made the page.
        remarks: what is missing, and why, for the page.

    Returns:
        The page.

    Raises:
        InputError: a class does not exist or has no images.
    """
    folder = Path(folder)
    pictures = draw(networks, some_classes(networks[0].statistics) if classes is None else classes, channels)
    for network in networks:
        network.statistics.save(folder / f'{network.name}.npz')
        with written_whole(folder / f'{network.name}.csv') as partial:
            partial.write_text(network.table())
    write_json(folder / 'excitation.json', [network.numbers() for network in networks])
    for name, (figure, _) in pictures.items():
        stem = name.replace('/', '_')
        save_figure(figure, folder / f'{stem}.png')
        with written_whole(folder / f'{stem}.svg') as partial:
            partial.write_text(as_svg(figure))
    page = render(networks, pictures, split=split, tolerance=tolerance, command=command, remarks=remarks)
    with written_whole(folder / 'excitation.html') as partial:
        partial.write_text(page)
    return folder / 'excitation.html'
