"""Renames, type changes, defaults, constraints, indexes on tables with rows; a data migration in between."""

import django.db.models.deletion
from django.db import migrations, models


def fill(apps, schema_editor):  # type: ignore[no-untyped-def]
    customer = apps.get_model("shop", "Customer")
    for row in customer.objects.all():
        row.email = f"c{row.pk}@example.org"
        row.save()


class Migration(migrations.Migration):
    dependencies = (("shop", "0001_initial"),)
    operations = (
        migrations.RenameField("Customer", "full_name", "name"),
        migrations.AlterField("Customer", "name", models.CharField(max_length=60)),
        migrations.AddField("Customer", "joined", models.DateTimeField(null=True)),
        migrations.AddField("Customer", "score", models.DecimalField(max_digits=10, decimal_places=3, default=0)),
        migrations.RunPython(fill, migrations.RunPython.noop),
        migrations.AlterField("Customer", "email", models.EmailField(max_length=254, unique=True)),
        migrations.AddConstraint(
            "Customer", models.CheckConstraint(condition=models.Q(("score__gte", 0)), name="shop_score")
        ),
        migrations.AlterField("Product", "price", models.DecimalField(max_digits=8, decimal_places=2)),
        migrations.AlterField("Product", "title", models.TextField(db_index=True)),
        migrations.AddField("Product", "details", models.JSONField(default=dict)),
        migrations.CreateModel(
            "Line",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("quantity", models.PositiveIntegerField(default=1)),
                ("order", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="shop.order")),
                ("product", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, to="shop.product")),
            ],
        ),
        migrations.AddField("Order", "products", models.ManyToManyField(through="shop.Line", to="shop.product")),
        migrations.AddConstraint("Line", models.UniqueConstraint(fields=("order", "product"), name="shop_line_once")),
        migrations.AddIndex("Order", models.Index(fields=["customer", "-placed"], name="shop_recent")),
    )
