_base_ = './_base_/places365.py'
