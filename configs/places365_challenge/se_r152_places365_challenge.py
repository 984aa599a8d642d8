_base_ = '../se_r152_places365.py'
train_dataloader = dict(dataset=dict(split='train_challenge'))
