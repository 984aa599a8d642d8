_base_ = './places-cnn_places365_challenge.py'
model = dict(backbone=dict(with_se=True))
