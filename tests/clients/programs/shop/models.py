"""Models as they are after the last migration."""

from __future__ import annotations

from django.db import models


class Customer(models.Model):
    name = models.CharField(max_length=60)
    email = models.EmailField(unique=True)
    joined = models.DateTimeField(null=True)
    score = models.DecimalField(max_digits=10, decimal_places=3, default=0)

    class Meta:
        constraints = (models.CheckConstraint(condition=models.Q(score__gte=0), name="shop_score"),)


class Product(models.Model):
    sku = models.SlugField(primary_key=True)
    title = models.TextField(db_index=True)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    details = models.JSONField(default=dict)


class Order(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="orders")
    products = models.ManyToManyField(Product, through="Line")
    placed = models.DateField()

    class Meta:
        indexes = (models.Index(fields=["customer", "-placed"], name="shop_recent"),)


class Line(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE)
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField(default=1)

    class Meta:
        constraints = (models.UniqueConstraint(fields=["order", "product"], name="shop_line_once"),)
