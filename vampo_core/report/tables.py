"""Tables of a page, and figures with their intervals."""

from collections.abc import Sequence

from vampo_core.evaluation.predictor import Metric


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],  # each with its heading first
    note: str = "",
) -> str:
    """A table that scrolls where the page is narrow, with a note below; all of it HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    text = f'<p class="muted">{note}</p>' if note else ""
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>{text}'


def figure(metric: Metric, spec: str, *, sign: bool = False) -> str:
    """A mean in bold and its interval, where it has one."""
    mean, low, high = (number(value, spec, sign=sign) for value in (metric.mean, *metric.ci95))
    interval = f" <small>{low} to {high}</small>" if metric.ci95[0] < metric.ci95[1] else ""
    return f"<b>{mean}</b>{interval}"


def number(value: float, spec: str, *, sign: bool = False) -> str:
    """A number as it is set: a real minus, a thin space before the per cent sign."""
    text = f"{value:{'+' if sign else ''}{spec}}"
    return text.replace("-", "\N{MINUS SIGN}").replace("%", "&#8239;%")
