"""The stand-in as a whole: how it comes into mmcv, and detectors with it."""

import copy
import io
import sys
from pathlib import Path

import mmcv
import mmdet
import pytest
import torch
from mmcv.ops import min_area_polygons, nms, roi_align
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from packaging.version import Version
from torch.testing import assert_close

from conftest import CONFIGS, ROOT, TOOLS

LINE = 'mmcv has no compiled operators: torchvision'


@pytest.fixture
def pure_mmcv(tmp_path):
    """A folder for PYTHONPATH with this mmcv, but without compiled operators."""
    (tmp_path / 'pure' / 'mmcv').mkdir(parents=True)
    for path in Path(mmcv.__file__).parent.iterdir():
        if not path.name.startswith('_ext'):
            (tmp_path / 'pure' / 'mmcv' / path.name).symlink_to(path)
    return f'{tmp_path / "pure"}:{ROOT}'


class TestInstallation:
    def test_by_an_import_that_says_so_once(self, run, pure_mmcv):
        program = (
            'import mmengine.utils.dl_utils as utils, se_mm\n'
            'try:\n    import mmcv.ops\nexcept ModuleNotFoundError as error:\n    print(error)\n'
            'print(utils.mmcv_full_available())\n'
            'import se_mm.mmcv_ext\n'
            'se_mm.mmcv_ext.install()\n'
            'import mmcv.ops\n'
            'from mmcv import _ext\n'
            'print(utils.mmcv_full_available(), _ext is mmcv._ext is se_mm.mmcv_ext, mmcv.ops.get_compiler_version())'
        )
        code, output = run(sys.executable, '-c', program, PYTHONPATH=pure_mmcv)
        assert code == 0, output
        assert output.count(LINE) == 1
        first, second, _, last = output.splitlines()[-4:]
        assert (first, second) == ("No module named 'mmcv._ext'", 'False')
        assert last.startswith('True True none, torchvision ')

    def test_by_custom_imports_of_a_config(self, run, pure_mmcv, tmp_path):
        (tmp_path / 'config.py').write_text("custom_imports = dict(imports=['se_mm.mmcv_ext'])")
        program = "from mmengine.config import Config; Config.fromfile('config.py'); import mmcv.ops, mmdet.apis"
        code, output = run(sys.executable, '-c', program, PYTHONPATH=pure_mmcv)
        assert code == 0, output
        assert LINE in output

    def test_too_late_an_import_warns(self, run, pure_mmcv):
        program = 'import mmdet.structures, se_mm.mmcv_ext'
        code, output = run(sys.executable, '-c', program, PYTHONPATH=pure_mmcv)
        late = 'WARNING - mmdet was imported before and goes on without them: import se_mm.mmcv_ext first'
        if code:  # the original mmdet does not import at all
            assert output.splitlines()[-1] == "ModuleNotFoundError: No module named 'mmcv._ext'"
        else:
            assert late in output

    def test_nothing_happens_where_operators_are_compiled(self, run, pure_mmcv):
        folder = Path(pure_mmcv.partition(':')[0], 'mmcv')
        (folder / '_ext.py').write_text('def __getattr__(name):\n    return name')
        program = 'import se_mm.mmcv_ext, mmcv.ops; print(mmcv.ops.info.ext_module.__name__)'
        code, output = run(sys.executable, '-c', program, PYTHONPATH=pure_mmcv)
        assert code == 0 and output.splitlines()[-1] == 'mmcv._ext', output

    def test_one_process_of_several_says_so(self, run, pure_mmcv):
        for rank in (0, 1):
            program = 'import se_mm.mmcv_ext, mmcv.ops'
            code, output = run(sys.executable, '-c', program, PYTHONPATH=pure_mmcv, RANK=rank, LOCAL_RANK=rank)
            assert code == 0 and output.count(LINE) == (rank == 0), output

    def test_tools_use_it(self, run, pure_mmcv):
        train = [TOOLS / 'train.py', CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py']
        code, output = run(sys.executable, *train, PYTHONPATH=pure_mmcv, fork=False)
        assert code == 1 and 'data_root data/drawn_shapes/ does not exist' in output and LINE in output, output


@pytest.mark.usefixtures('stand_in')
def test_an_operator_without_stand_in_is_named():
    with pytest.raises(NotImplementedError, match='min_area_polygons needs an mmcv with compiled operators: MMCV'):
        min_area_polygons(torch.rand(1, 18))


def detector():
    """A small Faster R-CNN."""
    folder = Path(mmdet.__file__).parent / '.mim' / 'configs'
    cfg = Config.fromfile(folder / '_base_' / 'models' / 'faster-rcnn_r50_fpn.py').model
    init_default_scope('mmdet')
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.neck.in_channels = [64, 128, 256, 512]
    cfg.roi_head.bbox_head.update(num_classes=3, fc_out_channels=64)
    cfg.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=100)
    cfg.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
    cfg.test_cfg.rcnn.score_thr = 0.1
    torch.manual_seed(0)
    return MODELS.build(cfg)


def batch():
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(2, [(3, 96, 128)] * 2, num_items=[3, 2], num_classes=3)


def losses_and_boxes(model):
    """Losses, gradients, and the boxes of a prediction."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(1)  # boxes are sampled
    losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    total, numbers = model.parse_losses(losses)
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return numbers, gradients, predicted(model)


def predicted(model):
    return [dict(sample.pred_instances.items()) for sample in model.eval().test_step(batch())]


def test_a_detectors_losses_gradients_and_boxes_are_those_of_compiled_operators(both):
    model = detector()
    compiled, stand_in = both(lambda: losses_and_boxes(model))
    assert len(compiled[1]) > 50 and len(compiled[2][0]['scores'])
    assert_close(stand_in, compiled, rtol=0, atol=0)


class Operators(torch.nn.Module):
    """What torch.compile and export have to pass in a two-stage detector."""

    def forward(self, boxes, scores, maps):
        dets, _ = nms(boxes, scores, 0.5, offset=0, max_num=10)
        rois = torch.cat([torch.zeros_like(dets[:, :1]), dets[:, :4]], 1)
        return dets, roi_align(maps, rois, (7, 7), 0.25, 0, 'avg', True)


def proposals():
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(40, 2, generator=generator) * 60
    boxes = torch.cat([start, start + torch.rand(40, 2, generator=generator) * 30], 1)
    return boxes, torch.rand(40, generator=generator), torch.randn(1, 3, 24, 24, generator=generator)


@pytest.mark.skipif(Version(torch.__version__) < Version('2.6'), reason='torch 2.5 does not trace mmengine')
@pytest.mark.usefixtures('stand_in')
class TestCompileAndExport:
    """With compiled operators, torch.compile breaks its graph at each of them, and the new ONNX exporter fails."""

    def test_operators_compile_to_one_graph(self):
        torch.compiler.reset()
        results = []
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            for function in (torch.compile(Operators(), backend='aot_eager', fullgraph=True), Operators()):
                boxes, scores, maps = proposals()
                found, regions = function(boxes, scores, maps.requires_grad_())
                regions.square().sum().backward()
                results.append((found, regions, maps.grad))
        assert_close(*results)

    @pytest.mark.slow
    def test_a_detector_compiles(self):
        torch.compiler.reset()
        model = detector()
        compiled = copy.deepcopy(model)
        compiled.compile(backend='aot_eager')
        assert_close(predicted(compiled), predicted(model), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize('dynamo', [True, False], ids=['torch.export', 'TorchScript'])
    def test_nms_exports_to_onnx(self, dynamo):
        onnxruntime = pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')

        class Suppress(torch.nn.Module):
            def forward(self, boxes, scores):
                return nms(boxes, scores, 0.5)

        boxes, scores, _ = proposals()
        file = io.BytesIO()
        options = dict(dynamo=True) if dynamo else dict(dynamo=False, opset_version=17)
        torch.onnx.export(Suppress(), (boxes, scores), file, **options)
        session = onnxruntime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
        names = [x.name for x in session.get_inputs()]
        result = session.run(None, dict(zip(names, (boxes.numpy(), scores.numpy()), strict=True)))
        assert_close([torch.from_numpy(x) for x in result], list(nms(boxes, scores, 0.5)))

    def test_operators_export_to_onnx(self):
        onnxruntime = pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
        program = torch.onnx.export(Operators().eval(), proposals(), dynamo=True)
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        names = [x.name for x in session.get_inputs()]
        result = session.run(None, dict(zip(names, (x.numpy() for x in proposals()), strict=True)))
        assert_close([torch.from_numpy(x) for x in result], list(Operators()(*proposals())))
