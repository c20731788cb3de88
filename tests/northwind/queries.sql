-- 20 analytical queries. Prices are float4 in the dump: sums go through numeric, so that the order of rows has no say.
-- 1. revenue by product
SELECT p.product_name, sum(od.unit_price::numeric * od.quantity * (1 - od.discount::numeric)) AS revenue FROM order_details od JOIN products p USING (product_id) GROUP BY p.product_name ORDER BY revenue DESC, 1 LIMIT 15;
-- 2. revenue by category and year
SELECT c.category_name, extract(year FROM o.order_date) AS y, round(sum(od.unit_price::numeric * od.quantity), 2) AS revenue FROM orders o JOIN order_details od USING (order_id) JOIN products p USING (product_id) JOIN categories c USING (category_id) GROUP BY 1, 2 ORDER BY 1, 2;
-- 3. customers without orders
SELECT c.customer_id, c.company_name FROM customers c LEFT JOIN orders o USING (customer_id) WHERE o.order_id IS NULL ORDER BY 1;
-- 4. late shipments by shipper
SELECT s.company_name, count(*) FILTER (WHERE o.shipped_date > o.required_date) AS late, count(*) AS total FROM orders o JOIN shippers s ON s.shipper_id = o.ship_via GROUP BY 1 ORDER BY 1;
-- 5. running total of orders per employee
SELECT employee_id, order_date, order_id, count(*) OVER (PARTITION BY employee_id ORDER BY order_date, order_id) AS running FROM orders WHERE order_date < '1996-10-01' ORDER BY 1, 2, 3;
-- 6. the three dearest products of each category
SELECT * FROM (SELECT c.category_name, p.product_name, p.unit_price, rank() OVER (PARTITION BY c.category_id ORDER BY p.unit_price DESC) AS r FROM products p JOIN categories c USING (category_id)) x WHERE r <= 3 ORDER BY 1, 4, 2;
-- 7. whom everybody reports to
WITH RECURSIVE chain AS (SELECT employee_id, last_name, reports_to, last_name::text AS path, 0 AS depth FROM employees WHERE reports_to IS NULL UNION ALL SELECT e.employee_id, e.last_name, e.reports_to, c.path || ' > ' || e.last_name, c.depth + 1 FROM employees e JOIN chain c ON e.reports_to = c.employee_id) SELECT employee_id, path, depth FROM chain ORDER BY path;
-- 8. orders per country and quarter, with totals
SELECT ship_country, date_trunc('quarter', order_date)::date AS q, count(*), grouping(ship_country, date_trunc('quarter', order_date)::date) FROM orders WHERE order_date >= '1998-01-01' GROUP BY ROLLUP (1, 2) ORDER BY 1 NULLS LAST, 2 NULLS LAST;
-- 9. products bought together
SELECT a.product_id, b.product_id, count(*) AS n FROM order_details a JOIN order_details b ON a.order_id = b.order_id AND a.product_id < b.product_id GROUP BY 1, 2 HAVING count(*) >= 6 ORDER BY 3 DESC, 1, 2;
-- 10. median freight per country
SELECT ship_country, percentile_cont(0.5) WITHIN GROUP (ORDER BY freight) AS median, max(freight) FROM orders GROUP BY 1 ORDER BY 1;
-- 11. first and last order of each customer
SELECT DISTINCT ON (customer_id) customer_id, order_date, order_id, first_value(order_date) OVER (PARTITION BY customer_id ORDER BY order_date, order_id) FROM orders ORDER BY customer_id, order_date DESC, order_id DESC;
-- 12. stock to reorder, by supplier
SELECT s.company_name, p.product_name, p.units_in_stock + p.units_on_order AS available, p.reorder_level FROM products p JOIN suppliers s USING (supplier_id) WHERE p.units_in_stock + p.units_on_order <= p.reorder_level AND p.discontinued = 0 ORDER BY 1, 2;
-- 13. territories per employee, as arrays
SELECT e.last_name, array_agg(t.territory_description ORDER BY t.territory_id) FROM employees e JOIN employee_territories USING (employee_id) JOIN territories t USING (territory_id) GROUP BY e.employee_id ORDER BY e.employee_id;
-- 14. customers whose every order has a line of at least ten pieces
SELECT c.customer_id FROM customers c WHERE EXISTS (SELECT 1 FROM orders o WHERE o.customer_id = c.customer_id) AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.customer_id = c.customer_id AND NOT EXISTS (SELECT 1 FROM order_details d WHERE d.order_id = o.order_id AND d.quantity >= 10)) ORDER BY 1;
-- 15. month over month
WITH m AS (SELECT date_trunc('month', order_date)::date AS month, sum(unit_price::numeric * quantity) AS total FROM orders JOIN order_details USING (order_id) GROUP BY 1) SELECT month, total, total - lag(total) OVER (ORDER BY month) AS change, round(100 * total / sum(total) OVER (), 3) AS share FROM m ORDER BY month;
-- 16. countries of customers and of suppliers
SELECT country, 'customer' AS kind FROM customers INTERSECT SELECT country, 'customer' FROM suppliers UNION SELECT country, 'only supplier' FROM (SELECT country FROM suppliers EXCEPT SELECT country FROM customers) x ORDER BY 1, 2;
-- 17. top customer of each employee (lateral)
SELECT e.last_name, t.customer_id, t.n FROM employees e CROSS JOIN LATERAL (SELECT customer_id, count(*) AS n FROM orders o WHERE o.employee_id = e.employee_id GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1) t ORDER BY e.employee_id;
-- 18. gaps between orders of a customer
SELECT customer_id, max(gap) AS longest FROM (SELECT customer_id, order_date - lag(order_date) OVER (PARTITION BY customer_id ORDER BY order_date, order_id) AS gap FROM orders) x GROUP BY 1 ORDER BY 2 DESC NULLS LAST, 1 LIMIT 20;
-- 19. text search in names
SELECT product_id, product_name FROM products WHERE product_name ILIKE '%ch%' OR product_name ~ '^[A-C]' ORDER BY product_name COLLATE "C";
-- 20. order totals, distribution in buckets
SELECT width_bucket(total, 0, 17000, 10) AS bucket, count(*), min(total), max(total) FROM (SELECT order_id, sum(unit_price::numeric * quantity * (1 - discount::numeric)) AS total FROM order_details GROUP BY order_id) x GROUP BY 1 ORDER BY 1;
