"""The prices: what models cost, which models in use have no price, and what the provider's own list says."""

from collections.abc import Iterable
from typing import Any

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose
from markupsafe import Markup
from wtforms import Form, StringField
from wtforms.validators import DataRequired, Length

from tokenrouter import prices, runtime
from tokenrouter.admin.access import PanelView, actor, settings
from tokenrouter.admin.formats import quoted
from tokenrouter.admin.limit_forms import explain
from tokenrouter.database.tables import NAME_LENGTH
from tokenrouter.errors import APIError
from tokenrouter.figures import counted
from tokenrouter.ledger.costs import DOLLARS


class PriceForm(Form):
    """What an administrator sets of a price: amounts a million tokens, and a request."""

    model = StringField("Model", [DataRequired("Name the model, or how models begin."), Length(max=NAME_LENGTH)])
    input = StringField("Input", [DataRequired("Give the price of a prompt; 0 is free.")])
    cached_input = StringField("Cached input")
    output = StringField("Output", [DataRequired("Give the price of an answer; 0 is free.")])
    request = StringField("A call")

    def values(self) -> dict[str, Any]:
        """Return the price as the domain takes it.

        Raises InvalidRequest, naming the field.
        """
        values: dict[str, Any] = {"model": self.model.data}
        for name in ("input", "output", "cached_input", "request"):
            typed = (self[name].data or "").strip()
            try:
                values[name] = prices.parse_price(typed) if typed else None
            except APIError as error:
                error.param = name
                raise
        return values | {"request": values["request"] or 0}


class PriceView(PanelView):
    """Prices, which are never edited: a new one takes the place of the one before, from then on."""

    @expose("/", methods=("GET", "POST"))
    def index_view(self) -> ResponseReturnValue:
        """List the prices, the models that lack one first; and set one."""
        form = PriceForm(request.form if request.method == "POST" else None, data=request.args.to_dict())
        if request.method == "POST" and form.validate() and self._set(form):
            return redirect(url_for(".index_view"))
        unpriced = prices.unpriced_models()
        return self.render(
            "admin/prices.html",
            form=form,
            prices=prices.views(),
            unpriced=unpriced,
            proposals=self._proposals(unpriced) if "propose" in request.args else None,
            takes_providers=settings().currency == DOLLARS,
        )

    def _proposals(self, models: Iterable[str]) -> dict[str, dict[str, str]] | None:
        try:
            return prices.proposals(models)
        except APIError as error:
            flash(str(error), "error")
            return None

    def _set(self, form: PriceForm) -> bool:
        try:
            values = form.values()
            prices.set_price(**values, by=actor())
        except APIError as error:
            explain(form, error)
            return False
        flash(
            Markup("Set the price of {}. It holds for what ends from now on.").format(quoted(values["model"])),
            "success",
        )
        return True

    @expose("/unset", methods=("POST",))
    def unset_view(self) -> ResponseReturnValue:
        """End a price of the administrator's."""
        model = request.form.get("model", "")
        try:
            prices.unset_price(model, by=actor())
        except APIError as error:
            flash(str(error), "error")
        else:
            flash(Markup("Ended your price of {}.").format(quoted(model)), "success")
        return redirect(url_for(".index_view"))

    @expose("/fetch", methods=("POST",))
    def fetch_view(self) -> ResponseReturnValue:
        """Show the provider's prices beside the administrator's; once that is confirmed, take them over."""
        try:
            listed = runtime.current().catalogue.fetch()
            if "confirmed" not in request.form:
                return self.render("admin/prices_fetch.html", rows=prices.compared(listed))
            fetched = prices.take_over(listed, by=actor())
        except APIError as error:
            flash(f"The provider’s prices could not be had. {error}", "error")
        else:
            priced = counted(fetched.priced, "model")
            flash(f"The provider has prices of {priced}; {len(fetched.changed):,} changed here.", "success")
        return redirect(url_for(".index_view"))
