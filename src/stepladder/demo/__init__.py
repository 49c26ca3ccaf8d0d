"""A page to try tokenizers on: `stepladder demo`.

    settings       what a visitor chose, from the controls and from the link; what the page takes
    photographs    the examples
    trial          models on an image, stage by stage: what the page shows, and when
    pictures       error maps, and previews of coarse stages
    markup         tables and captions as HTML
    page           the page itself

All but the last can be read and tested without Gradio.
"""
