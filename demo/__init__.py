"""The tabs of the demo, one module each, and what they share.

sample, paint, panorama, chain          one tab each: its endpoint, then its page
edit, change                            the endpoints of Change, and its page
editor                                  a picture, and what is painted over it
frame                                   what is added around a picture, dragged
requests                                arguments of visitors, checked
pictures                                input and output images
parts                                   title, controls, galleries, buttons
ready                                   what the page shows at first
style                                   colours and sizes
serving                                 hosts, proxies, passwords, bodies of requests
calls                                   calls of the page's functions, checked
worker                                  the queue of jobs before the model
files                                   the folder of visitors' files; how they are opened
"""
