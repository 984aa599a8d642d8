_base_ = '../r50_places365.py'
train_dataloader = dict(dataset=dict(split='train_challenge'))
