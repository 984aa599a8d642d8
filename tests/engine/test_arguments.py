import argparse

import pytest

from se_mm.engine.arguments import ConfigOptions
from se_mm.utils import InputError


def parse(*pairs):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    return parser.parse_args(['--cfg-options', *pairs]).cfg_options


def test_values_with_dicts_are_written_as_in_a_config():
    hooks = [dict(type='EMAHook', momentum=1e-4), dict(type='SyncBuffersHook')]
    assert parse("a.hooks=[dict(type='EMAHook', momentum=1e-4), dict(type='SyncBuffersHook')]") == {'a.hooks': hooks}
    assert parse('a={"type": "EMAHook", "momentum": 1e-4}') == dict(a=hooks[0])
    assert parse("a=dict(b=dict(c='x,y'))", 'd=1') == dict(a=dict(b=dict(c='x,y')), d=1)


def test_other_values_are_read_as_by_mmengine():
    """Names without quotes, braces in names; but spaces stay."""
    assert parse('a=/x y', "b='/x y'") == dict(a='/x y', b='/x y')
    assert parse('a=circle,square', 'b=[(1,2),(3,4)]', 'c=None', 'd=1e-3', 'e=x=y', 'f=epoch_{}.pth') == dict(
        a=['circle', 'square'], b=[(1, 2), (3, 4)], c=None, d=1e-3, e='x=y', f='epoch_{}.pth'
    )


@pytest.mark.parametrize('pair', ['a', '=1', 'a=[(1,2', 'a=[dict(type=EMAHook)]', 'a={"b": 1'])
def test_unreadable_pairs_are_named(pair):
    with pytest.raises(InputError) as error:
        parse(pair)
    assert str(error.value).startswith(f'--cfg-options {pair}: ')
