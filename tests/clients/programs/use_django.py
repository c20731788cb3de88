"""Django: migrations forward, back and forward on tables with rows, then the ORM."""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings


def configure(url: str) -> None:
    parts = urlsplit(url)
    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "shop"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts.path.lstrip("/"),
                "USER": unquote(parts.username or ""),
                "PASSWORD": unquote(parts.password or ""),
                "HOST": parts.hostname,
                "PORT": parts.port,
                "OPTIONS": {"options": "-c search_path=django_test"},
            }
        },
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    sys.path.insert(0, str(Path(__file__).parent))
    django.setup()


def migrate() -> None:
    from django.core.management import call_command
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS django_test CASCADE")
        cursor.execute("CREATE SCHEMA django_test")
    call_command("migrate", "shop", "0001", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO shop_customer (full_name, email) SELECT 'c' || i, 'same' FROM generate_series(1, 50) i"
        )
        cursor.execute("INSERT INTO shop_product SELECT 'sku' || i, 'product ' || i, i FROM generate_series(1, 20) i")
    call_command("migrate", verbosity=0)
    call_command("migrate", "shop", "0001", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT full_name, email FROM shop_customer WHERE id = 7")
        print("back", cursor.fetchone())
    call_command("migrate", verbosity=0)
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT app, name FROM django_migrations WHERE app = 'shop' ORDER BY id")
        print("migrations", cursor.fetchall())
        print("tables", sorted(connection.introspection.table_names(cursor)))
        constraints = connection.introspection.get_constraints(cursor, "shop_line")
        print("constraints", sorted(k for k, v in constraints.items() if v["unique"] and not v["primary_key"]))


def use() -> None:
    from django.db import IntegrityError, transaction
    from django.db.models import Avg, Count, F, Q, Sum
    from shop.models import Customer, Line, Order, Product

    for n, customer in enumerate(Customer.objects.order_by("id")[:10]):
        order = Order.objects.create(customer=customer, placed=dt.date(2024, 1, n + 1))
        products = Product.objects.order_by("price")[: n % 4 + 1]
        Line.objects.bulk_create([Line(order=order, product=p, quantity=n + 1) for p in products])
    print("lines", Line.objects.count(), Line.objects.aggregate(s=Sum("quantity"), a=Avg("product__price")))
    busiest = Customer.objects.annotate(n=Count("orders__line")).filter(n__gt=0).order_by("-n", "id")[:3]
    print("busiest", [(c.name, c.n) for c in busiest])
    print("spent", str(Line.objects.aggregate(t=Sum(F("quantity") * F("product__price")))["t"]))
    Product.objects.filter(sku="sku3").update(details={"colors": ["red", "blue"], "n": {"x": 1}})
    found = Product.objects.filter(Q(details__colors__contains="red") | Q(details__n__x=1)).values_list(
        "sku", flat=True
    )
    print("json", list(found))
    Customer.objects.filter(id__lte=5).update(score=F("score") + Decimal("1.125"))
    print("scores", [str(s) for s in Customer.objects.filter(id__lte=2).order_by("id").values_list("score", flat=True)])
    for bad in (lambda: Customer.objects.create(name="x", email="c1@example.org"), lambda: negative(Customer)):
        try:
            with transaction.atomic():
                bad()
        except IntegrityError as error:
            print("refused", type(error.__cause__).__name__)
    one, created = Customer.objects.update_or_create(email="c1@example.org", defaults={"name": "renamed"})
    print("upsert", one.name, created)
    with transaction.atomic():
        locked = Customer.objects.select_for_update().get(email="c2@example.org")
        locked.joined = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)
        locked.save()
    print("joined", Customer.objects.get(email="c2@example.org").joined)
    Product.objects.bulk_create(
        [Product(sku="sku1", title="again", price=1), Product(sku="new", title="new", price=2)],
        update_conflicts=True, unique_fields=["sku"], update_fields=["title"],
    )  # fmt: skip
    print("products", Product.objects.count(), Product.objects.get(sku="sku1").title)
    nested(Product)
    print("deleted", Customer.objects.filter(id__lte=3).delete())
    print("streamed", sum(1 for _ in Customer.objects.order_by("name").iterator(chunk_size=10)))


def nested(model: type) -> None:
    """Savepoints in savepoints: the inner one's end decides for itself, the outer one's for both."""
    from django.db import transaction

    objects = model.objects  # type: ignore[attr-defined]
    with transaction.atomic():
        objects.create(sku="outer", title="outer", price=1)
        for n in range(3):
            try:
                with transaction.atomic():
                    objects.create(sku=f"inner{n}", title="inner", price=n)
                    with transaction.atomic():
                        objects.filter(sku="outer").update(price=n)
                    if n == 1:
                        raise ValueError
            except ValueError:
                print("inner rolled back", objects.get(sku="outer").price)
    try:
        with transaction.atomic():
            objects.filter(sku__startswith="inner").delete()
            raise ValueError
    except ValueError:
        print("nested", list(objects.filter(title__in=("inner", "outer")).order_by("sku").values_list("sku", "price")))
    objects.filter(title__in=("inner", "outer")).delete()


def negative(model: type) -> None:
    model.objects.create(name="x", email="neg@example.org", score=-1)  # type: ignore[attr-defined]


if __name__ == "__main__":
    configure(sys.argv[1])
    migrate()
    use()
