"Anchors of headings."
import re


def anchor(text):
    "As nbdev writes them: `DistillLoader.show_batch` is #distillloader.show_batch."
    return re.sub(r"[^\w.-]", "", text.strip().lower().replace(" ", "-"))
