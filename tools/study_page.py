"""Write a page of the stored results of studies: tables, curves, and what the differences say.

    python tools/study_page.py configs/studies/cifar10.yml

The page is Markdown. The curves are drawn beside the stored results.
"""

import argparse
import shlex
import sys
from pathlib import Path

from follow import BASE

from se_mm.engine import guard
from se_mm.engine.studies import read_study
from se_mm.engine.study_page import draw, read_results, render
from se_mm.utils import InputError, write_json, written_whole


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('studies', nargs='+', type=Path, metavar='STUDY', help='study file')
    parser.add_argument(
        '--results',
        type=Path,
        default=BASE / 'docs' / 'evidence',
        metavar='DIR',
        help='what tools/study.py stored [%(default)s]',
    )
    parser.add_argument('-o', '--out', default='evidence.md', type=Path, metavar='FILE', help='the page [evidence.md]')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers as JSON')
    return parser.parse_args()


def main():
    args = parse_args()
    found = [read_results(read_study(path), args.results) for path in args.studies]
    studies = [results for results in found if results]
    if not studies:
        raise InputError(
            f'{args.results} has no results of {", ".join(map(str, args.studies))}: run tools/study.py first'
        )
    for results in studies:
        draw(results)
    text = render(studies, args.out, shlex.join(['python', *sys.argv]))
    with written_whole(args.out) as partial:
        partial.write_text(text)
    if args.json:
        write_json(args.json, [results.numbers() for results in studies])
    for results in studies:
        print(f'{results.study.title}: {len(results.results)} of {results.planned} runs')
        for sentence in results.sentences():
            print(f'  {sentence}')
    print(f'page: {args.out.resolve()}')


if __name__ == '__main__':
    with guard():
        main()
