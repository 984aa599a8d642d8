"""Former place of ``se_mm.weights``, ``se_mm.conversion`` and ``se_mm.models.architecture``."""

from se_mm.utils.moved import moved_names

__getattr__ = moved_names(
    __name__,
    dict(
        Report='se_mm.weights.LoadReport',
        arguments_of='se_mm.models.architecture.arguments_of',
        constructor_arguments='se_mm.models.architecture.constructor_arguments',
        expected_arguments='se_mm.weights.expected_arguments',
        load_backbone='se_mm.weights.load_backbone',
        locate='se_mm.weights.fetch',
        openmmlab_state='se_mm.conversion.openmmlab_state',
        published='se_mm.weights.released',
        read_checkpoint='se_mm.weights.read_checkpoint',
        recognise='se_mm.weights.recognise',
        save_weights='se_mm.conversion.save_weights',
        timm_state='se_mm.conversion.timm_state',
    ),
    dict(check_fit='use se_mm.weights.load_model'),
)
