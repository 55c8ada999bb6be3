"""The rooms of the demo: one module a tab, and what the tabs share.

sample, edit, paint, panorama, chain    a tab each: its endpoint first, then its page
requests                                what a visitor asked for, checked
pictures                                pictures that come in and go out
parts                                   what tabs are made of: controls, galleries, buttons
look                                    colours, sizes, words of welcome
serving                                 passwords, and requests of other sites refused
"""
