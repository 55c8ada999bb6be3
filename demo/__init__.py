"""The tabs of the demo, one module each, and what they share.

sample, edit, paint, panorama, chain    a tab each: its endpoint first, then its page
requests                                what a visitor asked for, checked
pictures                                pictures that come in and go out
parts                                   what tabs are made of: controls, galleries, buttons
style                                   colours, sizes, title
serving                                 passwords, and requests of other sites refused
"""
