"""How fast is a training step, through the Trainer and without, against a loop written by hand?"""
