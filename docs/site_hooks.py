"""What mkdocs does beside rendering: pages from the root of the repository, links to it, and a check of what is loaded.

ARCHITECTURE.md, CONTRIBUTING.md and CHANGELOG.md become pages of the site. A link from a page to another file outside
`docs/` works where the repository is browsed, and becomes its bare text here. A page that would load a
script, a style or a picture from another host fails the build.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT_PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the root, and the pages that they become."""
HOME = "index.md"

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_FOREIGN = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\ssrc=\"?(?:https?:)?//|<link\b[^>]*\srel=\"?stylesheet[^>]*\shref=\"?(?:https?:)?//"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root."""
    for source, target in ROOT_PAGES.items():
        text = (Path(config.config_file_path).parent / source).read_text("utf-8")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    source = {target: name for name, target in ROOT_PAGES.items()}.get(page.file.src_uri)
    folder = PurePosixPath(source).parent if source else PurePosixPath("docs", page.file.src_uri).parent

    def rewrite(link: re.Match[str]) -> str:
        picture, text, path, anchor = link[1], link[2], link[3], link[4] or ""
        target = site_path(folder, path)
        if target is None:
            return text
        up = "../" * page.file.src_uri.count("/")
        return f"{picture}[{text}]({up}{target}{anchor})"

    return _LINK.sub(rewrite, markdown)


def site_path(folder: PurePosixPath, path: str) -> str | None:
    """Where a link from a file in `folder` leads on the site, from its root; None if to nowhere there."""
    parts: list[str] = []
    for part in (folder / path).parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    name = "/".join(parts)
    if name == "README.md":
        return HOME
    return ROOT_PAGES.get(name, name.removeprefix("docs/") if name.startswith("docs/") else None)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Refuses a page that loads from another host.

    Raises:
        PluginError: If it does.
    """
    found = _FOREIGN.search(output)
    if found:
        raise PluginError(f"Page {page.file.src_uri} loads from another host: {found[0]}. Put a copy beside the page.")
    return output
